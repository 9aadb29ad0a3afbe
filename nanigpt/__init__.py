"""nanigpt: pretrain language models; a run is one Fiddle DAG."""

from typing import Any

from nanigpt.version import __version__ as __version__


def load_ipython_extension(ipython: Any) -> None:
    """Show configs as trees in a notebook, after `%load_ext nanigpt`."""
    from nanigpt.config.view.notebook import register

    register(ipython)
