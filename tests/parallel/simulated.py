"""Run by test_simulated.py as rank 0 of 512: shards a 70B model on a CPU, without other processes.

Usage: python -m tests.parallel.simulated REPORT.json
"""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from nanigpt.config.build import build
from nanigpt.config.flag import compose
from nanigpt.parallel.world import World

RANKS = 512


def main(report: str) -> None:
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    cfg = compose(["config:llama3_70b", "fiddler:hsdp(2)", "fiddler:tensor_parallel(8)"])
    trainer = build(cfg)
    trainer.check_ranks(RANKS)
    world = World(rank=0, size=RANKS, device=torch.device("cpu"))
    layout = trainer.parallelizer.mesh.layout(world)
    parallel = trainer.parallelizer.parallelize(trainer.model, layout, local_batch=1)
    shards = {
        name: {
            "shape": list(p.shape),
            "local": list(p.to_local().shape if isinstance(p, DTensor) else p.shape),
            "placements": str(p.placements),
            "device": p.device.type,
        }
        for name, p in parallel.model.named_parameters()
    }
    Path(report).write_text(json.dumps({"layout": str(layout), "shards": shards}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
