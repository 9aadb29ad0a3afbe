"""Which config a run directory belongs to."""

from pathlib import Path
from typing import Any

import fiddle as fdl

from nanigpt.config.record import differences, dump, load, short_hash
from nanigpt.config.tagged import set_tag
from nanigpt.errors import UsageError
from nanigpt.files import write_atomically


def choose_run(folder: str, name: str, cfg: fdl.Buildable) -> str:
    """`folder/name`, or where that is another config's, `folder/name-HASH` of this one.

    The same command thus finds its own run again.
    """
    path = Path(folder) / name
    recorded = path / "config.json"
    if recorded.exists() and differences(load(recorded), cfg):
        return f"{path}-{short_hash(cfg)}"
    return str(path)


def claim_run(path: Path, cfg: fdl.Buildable, *, started: bool) -> None:
    """Records `cfg` at `path`, unless a run of another config started there.

    The number of steps may grow: that prolongs a run.

    Raises:
        UsageError: another config was recorded; the message names what differs.
    """
    text = dump(cfg)
    if path.exists() and started:
        old = load(path)
        changed = [d for d in differences(old, cfg) if not _grows(d, old, cfg)]
        if changed:
            more = f" and {len(changed) - 5} more" if changed[5:] else ""
            raise UsageError(
                f"{path.parent} holds a run of another config ({'; '.join(changed[:5])}{more}); "
                "give this one a directory of its own with --run=DIR"
            )
    write_atomically(path, text)


def _grows(difference: str, old: fdl.Buildable, new: fdl.Buildable) -> bool:
    return difference.startswith("steps: ") and new.steps > old.steps


def load_run(path: str, *, tags: dict[type[fdl.Tag], Any] | None = None) -> fdl.Buildable:
    """The config recorded in a run directory, with some tags set to other values.

    Raises:
        UsageError: there is no run at `path`; the message names those beside it.
    """
    recorded = Path(path) / "config.json"
    if not recorded.exists():
        beside = sorted(p.parent.name for p in Path(path).parent.glob("*/config.json"))
        known = f"; in {Path(path).parent} there are {', '.join(beside)}" if beside else ""
        raise UsageError(f"--run={path}: no run there{known}")
    cfg = load(recorded)
    for tag, value in (tags or {}).items():
        set_tag(cfg, tag, value)
    return cfg
