"""From a config to the objects that it describes."""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.check.assembly import Assembly


def build(cfg: fdl.Buildable) -> Any:
    """Build what `fdl.build` would, after a check.

    Raises:
        UsageError: arguments are missing, of a wrong type or refused; the message has them all, by
            their places in the config.
    """
    assembly = Assembly(cfg)
    assembly.check()
    return assembly.root


def check(cfg: fdl.Buildable) -> Any:
    """Build with every tensor on meta, so that a config of any size is checked without memory.

    Raises:
        UsageError: as `build`.
    """
    with torch.device("meta"):
        return build(cfg)
