"""Write a recipe from a config of another program, and name every key that it does not carry.

nanigpt import-config llama3_8b.toml --out=recipe.py         (torchtitan, version 0.2 or before)
nanigpt import-config 1B_full.yaml --out=recipe.py --ranks=8  (torchtune)
"""

import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from absl import flags

from nanigpt.cli.importing import torchtitan, torchtune
from nanigpt.cli.importing.draft import Draft
from nanigpt.cli.importing.keys import Keys
from nanigpt.errors import UsageError

TAKES_ARGUMENTS = True

Translation = Callable[[Keys, Draft, int | None], None]

_SECTIONS = ("training", "parallelism", "lr_scheduler")  # of which a TOML of torchtitan has one


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out", None, "Write the recipe into this new file, not to the terminal.", flag_values=values
    )
    flags.DEFINE_integer(
        "ranks",
        None,
        "Compute the global batch size for this number of processes, if the file does not have it.",
        lower_bound=1,
        flag_values=values,
    )


def run(values: flags.FlagValues, files: list[str]) -> int:
    if len(files) != 1:
        raise UsageError(
            f"import-config: {len(files)} files; expected one\n  try: nanigpt import-config --help"
        )
    path = Path(files[0])
    program, translate, content = _read(path)
    keys, draft = Keys(content), Draft(program, path)
    try:
        translate(keys, draft, values.ranks)
    except UsageError as error:
        raise error.within(str(path)) from error
    _write(values.out, draft.source(keys))
    if values.out is not None:
        train = ["nanigpt", "train", f"--import={values.out}", f"--config=config:{draft.name}"]
        print(f"wrote {values.out}; train it: {shlex.join(train)}")
    for line in draft.report(keys):
        print(f"not carried: {line}", file=sys.stderr)
    return 0


def _read(path: Path) -> tuple[str, Translation, dict[str, Any]]:
    """Return the program that a file belongs to, its translation, and the content.

    Raises:
        UsageError: It is no config of torchtitan or torchtune, or cannot be read.
    """
    if path.suffix not in (".toml", ".yaml", ".yml"):
        other = shlex.join(["nanigpt", "show", f"--config=huggingface:{path}"])
        advice = f"\n  try: {other}" if path.suffix == ".json" else ""
        raise UsageError(f"{path}: expected a .toml of torchtitan, or a .yaml of torchtune{advice}")
    is_toml = path.suffix == ".toml"
    try:
        text = path.read_text()
        content = tomllib.loads(text) if is_toml else _yaml(text)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read ({told})") from error
    found = content if isinstance(content, dict) else {}
    if is_toml:
        if not any(isinstance(found.get(name), dict) for name in _SECTIONS):
            raise UsageError(f"{path} is no config of torchtitan: it has no [training]")
        return "torchtitan", torchtitan.translate, found
    model = found.get("model")
    if not isinstance(model, dict) or "_component_" not in model:
        raise UsageError(f"{path} is no config of torchtune: it has no model._component_")
    return "torchtune", torchtune.translate, found


def _yaml(text: str) -> Any:
    """Return the content of a YAML without aliases, which could make a small file endless."""
    if any(isinstance(e, yaml.AliasEvent) for e in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("expected no aliases")
    return yaml.safe_load(text)


def _write(out: str | None, source: str) -> None:
    if out is None:
        print(source, end="")
        return
    try:
        with open(out, "x") as file:
            file.write(source)
    except FileExistsError as error:
        raise UsageError(f"--out={out}: is there already; expected a new file") from error
    except OSError as error:
        raise UsageError(f"--out={out}: cannot be written ({error.strerror})") from error
