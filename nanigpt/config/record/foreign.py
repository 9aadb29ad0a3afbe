"""Files of other programs that users take for records."""

import json
import shlex
from pathlib import Path

from nanigpt.errors import ForeignFile

_LANGUAGES = {".toml": "TOML", ".yaml": "YAML", ".yml": "YAML"}
_FIELD = '"model_type"'


def refuse_foreign(path: str | Path) -> None:
    """Raise ForeignFile if a file is a config of another program.

    A TOML or YAML is known by its name. A config.json of Hugging Face is known by `model_type`,
    which a record does not have.
    """
    path = Path(path)
    language = _LANGUAGES.get(path.suffix.lower())
    if language is not None:
        raise ForeignFile(
            f"{path} is a {language} file, not a recorded config",
            shlex.join(["nanigpt", "import-config", str(path), f"--out={path.stem}.py"]),
        )
    kind = _model_type(path)
    if kind is not None:
        folder = path.parent if path.name == "config.json" else path
        raise ForeignFile(
            f"{path} is a Hugging Face config (model_type={kind!r}), not a recorded one",
            shlex.join([f"--config=huggingface:{folder}"]),
        )


def _model_type(path: Path) -> str | None:
    try:
        text = path.read_text()
        found = json.loads(text) if _FIELD in text else None  # records are long
    except (OSError, ValueError, RecursionError):
        return None  # the caller says what is wrong with it
    kind = found.get("model_type") if isinstance(found, dict) else None
    return kind if isinstance(kind, str) else None
