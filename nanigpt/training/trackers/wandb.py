"""Send metrics to Weights & Biases."""

import importlib.util
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.files import write_atomically
from nanigpt.problems import Problem, first_line
from nanigpt.training.trackers.tracker import Row, RunInfo

_WITHOUT_LOGIN = ("offline", "dryrun", "disabled")


class WandB:
    """Tracker that sends rows, the resolved config and its fingerprint to Weights & Biases.

    The tracker draws the run's id once and keeps it in `wandb.json` in the run's folder, with the
    last step that was sent. A resumed run continues under its id, and sends no step twice: repeated
    steps are the same bit for bit.

    Weights & Biases reads its own environment variables, such as WANDB_MODE=offline, WANDB_PROJECT,
    WANDB_ENTITY, WANDB_NAME, WANDB_RUN_ID and WANDB_DIR. Given arguments take precedence over them.

    Args:
        project: Project of the run; None takes WANDB_PROJECT, or else `nanigpt`.
        entity: User or team that owns the project; None takes WANDB_ENTITY, or else your default.
        name: Name of the run; None takes WANDB_NAME, or else the name of the run's folder.
        group: Group of runs that this one belongs to, or None.
        tags: Labels of the run.
    """

    def __init__(
        self,
        *,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
    ):
        self.project = project
        self.entity = entity
        self.name = name
        self.group = group
        self.tags = tags

    def problems(self) -> list[Problem]:
        """Report a missing package or login. On a terminal, Weights & Biases asks for a login."""
        if importlib.util.find_spec("wandb") is None:
            fix = "pip install 'nanigpt[wandb]', or training without this tracker"
            return [Problem("", ..., "the package wandb, which is not installed", fix)]
        import wandb

        try:
            if wandb.setup().settings.mode in _WITHOUT_LOGIN:
                return []
            wandb.login(verify=False)  # the server is asked when the run begins
        except (wandb.errors.Error, ValueError) as error:  # ValueError: a wrong setting
            expected = f"a login to Weights & Biases ({first_line(error).rstrip('.')})"
            fix = "`wandb login`, or WANDB_MODE=offline in the environment"
            return [Problem("", ..., expected, fix)]
        return []

    def open(self, info: RunInfo, /) -> None:
        import wandb

        self._state = info.directory / "wandb.json"
        kept = _read(self._state)
        self._id = kept.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        self._sent = kept.get("step", 0)
        info.directory.mkdir(parents=True, exist_ok=True)
        self._keep()
        fields: dict[str, Any] = {
            "project": _given(self.project, "WANDB_PROJECT", "nanigpt"),
            "name": _given(self.name, "WANDB_NAME", info.directory.resolve().name),
            "dir": _given(None, "WANDB_DIR", str(info.directory)),
            "entity": self.entity,
            "group": self.group,
            "tags": list(self.tags) or None,
        }
        try:
            self._run = wandb.init(
                id=self._id,
                resume="allow",
                config={"config": dict(info.config), "fingerprint": info.fingerprint,
                        "command": list(info.command)},
                **{name: value for name, value in fields.items() if value is not None},
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise UsageError(
                f"Weights & Biases cannot be reached: {str(error).rstrip('.')}; or set "
                "WANDB_MODE=offline in the environment"
            ) from error

    def write(self, rows: Sequence[Row], /) -> None:
        for row in rows:
            if row["step"] > self._sent:
                numbers = {name: x for name, x in row.items() if isinstance(x, int | float)}
                self._run.log(numbers, step=row["step"])
                self._sent = row["step"]
        self._keep()

    def close(self) -> None:
        self._run.finish()

    def _keep(self) -> None:
        write_atomically(self._state, json.dumps({"id": self._id, "step": self._sent}) + "\n")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _given(argument: str | None, variable: str, default: str) -> str | None:
    """Return the argument, or the default; None leaves it to the environment variable."""
    if argument is not None:
        return argument
    return None if os.environ.get(variable) else default
