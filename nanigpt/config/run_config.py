"""Which config a run directory belongs to."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fiddle as fdl

from nanigpt.config.record import differences, dump, load, short_hash
from nanigpt.errors import UsageError


@dataclass(frozen=True)
class Claim:
    """The right to write a run's config."""

    path: Path
    text: str

    def write(self) -> None:
        """Replaces the file at once, so that a kill leaves the old or the new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".config.", dir=self.path.parent)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(self.text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path)


def choose_run(folder: str, name: str, cfg: fdl.Buildable) -> str:
    """`folder/name`, or where that is another config's, `folder/name-HASH` of this one.

    The same command thus finds its own run again.
    """
    path = Path(folder) / name
    recorded = path / "config.json"
    if recorded.exists() and differences(load(recorded), cfg):
        return f"{path}-{short_hash(cfg)}"
    return str(path)


def claim_run(path: Path, cfg: fdl.Buildable) -> Claim:
    """Checks that the run whose config lies at `path` is this config's, or new.

    The number of steps may differ: that prolongs a run.

    Raises:
        UsageError: another config was recorded there; the message names what differs.
    """
    if path.exists():
        changed = [d for d in differences(load(path), cfg) if not d.startswith("steps: ")]
        if changed:
            more = f" and {len(changed) - 5} more" if changed[5:] else ""
            raise UsageError(
                f"{path.parent} holds a run of another config ({'; '.join(changed[:5])}{more}); "
                "give this one a directory of its own with --run=DIR"
            )
    return Claim(path, dump(cfg))


def load_run(path: str) -> fdl.Buildable:
    """The config recorded in a run directory.

    Raises:
        UsageError: there is no run at `path`; the message names those beside it.
    """
    recorded = Path(path) / "config.json"
    if not recorded.exists():
        beside = sorted(p.parent.name for p in Path(path).parent.glob("*/config.json"))
        known = f"; in {Path(path).parent} there are {', '.join(beside)}" if beside else ""
        raise UsageError(f"--run={path}: no run there{known}")
    return load(recorded)
