"""How a run is spread over ranks.

Each sets one axis of the mesh; they compose, and what they leave goes to `dp_shard`.
"""

import fiddle as fdl

from nanigpt import tags
from nanigpt.config.registry import fiddler
from nanigpt.config.tagged import set_tag
from nanigpt.parallel.context import Method
from nanigpt.parallel.fsdp import Reshard
from nanigpt.training.trainer import Trainer


@fiddler
def fsdp(cfg: fdl.Config[Trainer], shards: int = -1, reshard: Reshard = "default") -> None:
    """Shards parameters over so many ranks; -1 is all that the other axes leave."""
    set_tag(cfg, tags.DataParallelShard, shards)
    cfg.parallelizer.fsdp.reshard_after_forward = reshard


@fiddler
def hsdp(cfg: fdl.Config[Trainer], replicate: int) -> None:
    """Keeps `replicate` copies of the sharded model, such as one per node."""
    set_tag(cfg, tags.DataParallelReplicate, replicate)


@fiddler
def tensor_parallel(cfg: fdl.Config[Trainer], n: int) -> None:
    """Splits matrices, and the sequence between them, over n ranks."""
    set_tag(cfg, tags.TensorParallel, n)


@fiddler
def context_parallel(cfg: fdl.Config[Trainer], n: int, method: Method = "all_gather") -> None:
    """Splits each sequence over n ranks."""
    set_tag(cfg, tags.ContextParallel, n)
    cfg.parallelizer.context.method = method


@fiddler
def expert_parallel(cfg: fdl.Config[Trainer], n: int) -> None:
    """Divides the experts of a mixture over n of the ranks that share parameters."""
    set_tag(cfg, tags.ExpertParallel, n)


@fiddler
def pipeline(
    cfg: fdl.Config[Trainer], n: int, schedule: str = "1F1B", microbatches: int | None = None
) -> None:
    """Divides the layers over n ranks, through which microbatches pass.

    Each microbatch has as many sequences as a local batch had before.
    """
    set_tag(cfg, tags.PipelineParallel, n)
    set_tag(cfg, tags.PipelineSchedule, schedule)
    cfg.parallelizer.pipeline.microbatches = microbatches
    if microbatches is not None and cfg.local_batch_size is not None:
        set_tag(cfg, tags.LocalBatchSize, cfg.local_batch_size * microbatches)
