"""Which config a run directory belongs to."""

from pathlib import Path
from typing import Any

import fiddle as fdl

from nanigpt.config.fold import Path as ConfigPath
from nanigpt.config.locate import value_at
from nanigpt.config.paths import arguments, parse_path
from nanigpt.config.record.file import differences, dump, is_record, load
from nanigpt.config.record.fingerprint import fingerprint
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
    allow_config_change: bool = False,
    advice: str = (
        "give this one a directory of its own with --run_dir=DIR, or go on there with "
        "--allow_config_change"
    ),
) -> list[str]:
    """Record `cfg` at `path`, unless a run of another config started there.

    A component says itself what of it may change without the run becoming another, by an attribute
    of its class: `may_change_on_resume = True`, or the names of arguments.

    Args:
        started: something was trained; before that any config may take the place.
        allow_config_change: the user said that every change is meant.
        advice: end of the message that refuses.

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
        allowed = [d for d in changed if _may_change(d, old, cfg) or _grows(d, old, cfg)]
        refused = [d for d in changed if d not in allowed]
        if refused and not allow_config_change:
            others = f" (allowed would be: {_some(allowed)})" if allowed else ""
            raise UsageError(
                f"{path.parent} holds a run of another config: {_some(refused)}{others}; {advice}"
            )
    write_atomically(path, text)
    return changed


def _may_change(difference: str, old: fdl.Buildable, new: fdl.Buildable) -> bool:
    """Whether a component at or above what differs says that it may, in the old or the new."""
    text = difference.partition(": ")[0]
    try:
        path = tuple(parse_path(text))
    except UsageError:  # no path, but words
        return False
    return any(may_change_on_resume(cfg, path) for cfg in (old, new))


def may_change_on_resume(cfg: fdl.Buildable, path: ConfigPath) -> bool:
    """Whether a component at or above a path says that it may change when a run resumes."""
    nodes = [(cfg, path[0] if path else None)]
    for depth in range(1, len(path) + 1):
        value = value_at(cfg, path[:depth])
        if isinstance(value, fdl.Buildable):
            nodes.append((value, path[depth] if depth < len(path) else None))
    for node, argument in nodes:
        declared = getattr(fdl.get_callable(node), "may_change_on_resume", False)
        if declared is True or (declared and argument in declared):
            return True
    return False


def _grows(difference: str, old: fdl.Buildable, new: fdl.Buildable) -> bool:
    before, after = (arguments(cfg).get("steps") for cfg in (old, new))
    if not (isinstance(before, int) and isinstance(after, int)):  # the roots may be anything
        return False
    return difference.startswith("steps: ") and after > before


def _some(differences: list[str]) -> str:
    more = f" and {len(differences) - 5} more" if differences[5:] else ""
    return "; ".join(differences[:5]) + more


def load_run(path: str, *, tags: dict[type[fdl.Tag], Any] | None = None) -> fdl.Buildable:
    """Load the config of a run directory, and set some tags where it has them.

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
        fdl.set_tagged(cfg, tag=tag, value=value)
    return cfg
