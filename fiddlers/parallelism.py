"""Fiddlers that spread a run over ranks.

Each sets one axis of the mesh. They combine, and `dp_shard` takes the remaining ranks.
"""

import fiddle as fdl

from nanigpt import tags
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.registry import fiddler
from nanigpt.errors import UsageError
from nanigpt.parallel.context import Method
from nanigpt.parallel.fsdp import Reshard
from nanigpt.training.trainer import Trainer


@fiddler
def fsdp(cfg: fdl.Config[Trainer], shards: int = -1, reshard: Reshard = "default") -> None:
    """Shard parameters over `shards` ranks; -1 takes all ranks that the other axes leave."""
    set_tag(cfg, tags.DataParallelShard, shards)
    cfg.parallelizer.fsdp.reshard_after_forward = reshard


@fiddler
def hsdp(cfg: fdl.Config[Trainer], replicate: int) -> None:
    """Keep `replicate` copies of the sharded model, such as one per node."""
    set_tag(cfg, tags.DataParallelReplicate, replicate)


@fiddler
def tensor_parallel(cfg: fdl.Config[Trainer], n: int) -> None:
    """Split matrices, and the sequence between them, over n ranks."""
    set_tag(cfg, tags.TensorParallel, n)


@fiddler
def context_parallel(cfg: fdl.Config[Trainer], n: int, method: Method = "all_gather") -> None:
    """Split each sequence over n ranks."""
    set_tag(cfg, tags.ContextParallel, n)
    cfg.parallelizer.context.method = method


@fiddler
def expert_parallel(cfg: fdl.Config[Trainer], n: int) -> None:
    """Divide the experts of each mixture over n of the ranks that share parameters."""
    set_tag(cfg, tags.ExpertParallel, n)


@fiddler
def pipeline(
    cfg: fdl.Config[Trainer], n: int, schedule: str = "1F1B", microbatches: int | None = None
) -> None:
    """Divide the layers over n ranks, through which microbatches pass.

    Each microbatch has as many sequences as one had before, or as a local batch had where layers
    were not divided.

    Args:
        cfg: The run.
        n: Number of pipeline ranks.
        schedule: Name of the schedule.
        microbatches: Number of microbatches; None makes one of each sequence.
    """
    if n < 2 and microbatches is not None:
        raise UsageError(f"pipeline({n}, microbatches={microbatches}): expected at least 2 ranks")
    if microbatches is not None and cfg.local_batch_size is not None:
        set_tag(cfg, tags.LocalBatchSize, _microbatch_size(cfg) * microbatches)
    set_tag(cfg, tags.PipelineParallel, n)
    set_tag(cfg, tags.PipelineSchedule, schedule)
    cfg.parallelizer.pipeline.microbatches = microbatches


def _microbatch_size(cfg: fdl.Config[Trainer]) -> int:
    """Return the number of sequences that a rank computes at once."""
    if cfg.parallelizer.mesh.pp == 1:
        return cfg.local_batch_size
    microbatches = cfg.parallelizer.pipeline.microbatches
    if microbatches is None:
        return 1
    if cfg.local_batch_size % microbatches:
        raise UsageError(
            f"pipeline: local_batch_size={cfg.local_batch_size} is no multiple of the run's "
            f"microbatches={microbatches}, so that the size of a microbatch is unknown"
        )
    return cfg.local_batch_size // microbatches
