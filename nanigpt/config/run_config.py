"""Which config a run directory belongs to."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fiddle as fdl

from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.paths import arguments
from nanigpt.config.record import differences, dump, is_record, load
from nanigpt.config.tagged import set_tag
from nanigpt.errors import UnknownName, UsageError
from nanigpt.files import write_atomically


def choose_run(folder: str, name: str, cfg: fdl.Buildable) -> str:
    """`folder/name`, or where that is another config's, `folder/name-FINGERPRINT` of this one.

    The same command thus finds its own run again.
    """
    path = Path(folder) / name
    recorded = path / "config.json"
    if recorded.exists() and fingerprint(load(recorded)) != fingerprint(cfg):
        return f"{path}-{fingerprint(cfg)[:8]}"
    return str(path)


def claim_run(
    path: Path,
    cfg: fdl.Buildable,
    *,
    started: bool,
    may_change: tuple[str, ...] = (),
    allow_config_change: bool = False,
) -> list[str]:
    """Records `cfg` at `path`, unless a run of another config started there.

    Args:
        started: something was trained; before that any config may take the place.
        may_change: paths, which may have a `*`, where or below which a change is no other run, such
            as logging.
        allow_config_change: the user said that every change is meant.

    Returns:
        What changed, as `path: old -> new`.

    Raises:
        UsageError: another config was recorded; the message names what differs and what of it would
            be allowed.
    """
    text, changed = dump(cfg), []
    if path.exists() and started:
        old = load(path)
        if fingerprint(old) != fingerprint(cfg):
            # Whatever a difference does not tell is refused all the same.
            changed = differences(old, cfg) or ["fingerprints differ"]
        allowed = [d for d in changed if _may_change(d, may_change) or _grows(d, old, cfg)]
        refused = [d for d in changed if d not in allowed]
        if refused and not allow_config_change:
            others = f" (allowed would be: {_some(allowed)})" if allowed else ""
            raise UsageError(
                f"{path.parent} holds a run of another config: {_some(refused)}{others}; give this "
                "one a directory of its own with --run=DIR, or go on there with "
                "--allow_config_change"
            )
    write_atomically(path, text)
    return changed


def _may_change(difference: str, paths: tuple[str, ...]) -> bool:
    changed = difference.split(": ")[0]
    return any(fnmatchcase(changed, path) or changed.startswith(f"{path}.") for path in paths)


def _grows(difference: str, old: fdl.Buildable, new: fdl.Buildable) -> bool:
    before, after = (arguments(cfg).get("steps") for cfg in (old, new))
    numbers = isinstance(before, int) and isinstance(after, int)  # the roots may be anything
    return difference.startswith("steps: ") and numbers and after > before


def _some(differences: list[str]) -> str:
    more = f" and {len(differences) - 5} more" if differences[5:] else ""
    return "; ".join(differences[:5]) + more


def load_run(path: str, *, tags: dict[type[fdl.Tag], Any] | None = None) -> fdl.Buildable:
    """The config recorded in a run directory, with some tags set to other values.

    Raises:
        UsageError: there is no run at `path`; the message names those beside it.
    """
    recorded = Path(path) / "config.json"
    if not recorded.exists():
        found = Path(path).parent.glob("*/config.json")
        beside = sorted(p.parent.name for p in found if is_record(p))
        problem = f"{path}: no run there"
        raise UnknownName(problem, Path(path).name, beside) if beside else UsageError(problem)
    cfg = load(recorded)
    for tag, value in (tags or {}).items():
        set_tag(cfg, tag, value)
    return cfg
