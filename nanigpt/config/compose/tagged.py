"""Setting every argument that has a tag."""

from typing import Any

import fiddle as fdl
from fiddle import tagging

from nanigpt.errors import UsageError


def set_tag(cfg: fdl.Buildable, tag: type[fdl.Tag], value: Any) -> None:
    """`fdl.set_tagged`, which is silent where nothing has the tag.

    Raises:
        UsageError: no argument of the config has it.
    """
    if tag not in tagging.list_tags(cfg, add_superclasses=True):
        raise UsageError(f"no argument of this config has the tag {tag.__name__}")
    fdl.set_tagged(cfg, tag=tag, value=value)
