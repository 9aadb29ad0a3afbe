"""nanigpt: pretrain language models; a run is one Fiddle DAG."""

__version__ = "0.1.0"
