"""From a config to the objects that it describes."""

import re
from typing import Any

import fiddle as fdl

from nanigpt.errors import UsageError

_WHERE = re.compile(r"at <root>(?P<path>[\w.\[\]'\"]*)")


def build(cfg: fdl.Buildable) -> Any:
    """`fdl.build`, with a refused argument reported by its place in the config.

    Raises:
        UsageError: a component refused its arguments, or one that it requires is missing.
    """
    try:
        return fdl.build(cfg)
    except (ValueError, TypeError) as error:
        # Fiddle re-raises a component's exception with the place appended to its message.
        cause = getattr(error, "proxy_base_exception", None)
        found = _WHERE.search(getattr(error, "proxy_message", ""))
        if cause is None or found is None:
            raise
        where = found["path"].lstrip(".") or "the root"
        raise UsageError(f"{where}: {cause}") from error
