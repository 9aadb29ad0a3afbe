"""Llama 3 with published meshes, on nodes of eight GPUs.

Source of meshes and batch sizes: torchtitan's measurements on H100s of December 2024
(benchmarks/llama3_h100_202412_torchtitan.md in its repository), tables 1, 4 and 5. Those runs used
float8, and those of table 1 recomputed selectively. These recipes compute in bfloat16 and recompute
whole blocks.
"""

from typing import Any

import fiddle as fdl

from nanigpt.config.registry import recipe
from nanigpt.experiments.llama3 import llama3_8b, llama3_70b, llama3_405b
from nanigpt.experiments.sizes import sized
from nanigpt.parallel.compile import Compile
from nanigpt.training.trainer import Trainer

FAMILY = "Llama 3"


def _at_scale(
    cfg: fdl.Config[Trainer], *, global_batch_size: int, local_batch_size: int, **axes: int
) -> fdl.Config[Trainer]:
    cfg.global_batch_size = global_batch_size
    cfg.local_batch_size = local_batch_size
    for axis, size in axes.items():
        setattr(cfg.parallelizer.mesh, axis, size)
    for block in cfg.model.layers:
        block.activation_checkpointing = "full"
    cfg.parallelizer.compile = fdl.Config(Compile)
    return cfg


@recipe
@sized(llama3_8b)
def llama3_8b_on_8(**sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 8B on one node, sharded over 8 GPUs."""
    return _at_scale(llama3_8b(**sizes), global_batch_size=16, local_batch_size=2, dp_shard=8)


@recipe
@sized(llama3_70b)
def llama3_70b_on_256(**sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 70B on 32 nodes, tensor parallel within a node and sharded over nodes."""
    return _at_scale(
        llama3_70b(**sizes), global_batch_size=512, local_batch_size=16, dp_shard=32, tp=8
    )


@recipe
@sized(llama3_405b)
def llama3_405b_on_512(**sizes: Any) -> fdl.Config[Trainer]:
    """Train Llama 3.1 405B on 64 nodes, with tensor parallel 8, pipeline 8 and 8 shards."""
    cfg = _at_scale(
        llama3_405b(**sizes), global_batch_size=256, local_batch_size=32, pp=8, dp_shard=8, tp=8
    )
    cfg.parallelizer.pipeline.schedule = "Interleaved1F1B"
    return cfg
