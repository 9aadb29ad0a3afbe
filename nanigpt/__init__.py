"""nanigpt: pretrain language models; a run is one Fiddle DAG."""

from typing import Any

__version__ = "0.1.0"


def load_ipython_extension(ipython: Any) -> None:
    """Show configs as trees in a notebook, after `%load_ext nanigpt`."""
    from nanigpt.config.view.notebook import register

    register(ipython)
