"""nanigpt: pretrain language models; a run is one Fiddle DAG."""

from typing import Any

__version__ = "0.1.0"


def load_ipython_extension(ipython: Any) -> None:
    """`%load_ext nanigpt`: configs show as trees."""
    from nanigpt.config.notebook import register

    register(ipython)
