"""From a config to the objects that it describes."""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.check import collect_build, problems
from nanigpt.errors import UsageError


def build(cfg: fdl.Buildable) -> Any:
    """`fdl.build` after a check: what is wrong is reported all at once, by its place in the config.

    Raises:
        UsageError: arguments are missing, of a wrong type or refused; one line for each.
    """
    found = problems(cfg)
    if not found:
        built, found = collect_build(cfg)
    if found:
        many = len(found) > 1
        raise UsageError("\n  ".join([f"{len(found)} problems:", *found]) if many else found[0])
    return built


def check(cfg: fdl.Buildable) -> Any:
    """What `build` would return, but with every tensor on meta: a config of any size is checked
    without memory for it.

    Raises:
        UsageError: as `build`.
    """
    with torch.device("meta"):
        return build(cfg)
