"""Run on two or four ranks by test_communication.py: counts collectives.

Usage: torchrun --nproc-per-node=2 -m tests.parallel.communication COUNTS.json
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.distributed.tensor.debug import CommDebugMode

from nanigpt.config.check.build import build
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.training.loop import microbatches, train_step
from nanigpt.training.setup import Session, set_up_model
from tests.support import tiny

CASES = {
    "fsdp always": ["fiddler:fsdp(2, 'always')"],
    "fsdp never": ["fiddler:fsdp(2, 'never')"],
    "fsdp default": ["fiddler:fsdp(2)"],
    "tp": ["fiddler:tensor_parallel(2)"],
    "tp without sequence": [
        "fiddler:tensor_parallel(2)",
        "set:parallelizer.tensor.sequence_parallel=False",
    ],
}
RECOMPUTING = {
    "tp": ("llama3_debug", "fiddler:tensor_parallel(2)"),
    "ep": ("qwen3_moe_debug", "fiddler:expert_parallel(2)"),
}


def counting() -> CommDebugMode:
    """Without upstream's tracking of modules, which fails where one is called twice (a RoPE)."""
    mode = CommDebugMode()
    mode.advanced_module_tracker.__enter__ = lambda: None
    mode.advanced_module_tracker.__exit__ = lambda *_: None
    mode.advanced_module_tracker.module_parents_dict = {"": set()}
    return mode


def count(
    world: World, edits: list[str], n_batches: int = 1, recipe: str = "llama3_debug"
) -> dict[str, dict[str, int]]:
    """Calls per collective, in forward and backward pass."""
    trainer = build(tiny(*edits, recipe=recipe))
    parallel = set_up_model(trainer, world)
    generator = torch.Generator().manual_seed(0)
    tokens_BL = torch.randint(512, (1, trainer.data.sequence_length), generator=generator)
    found = {"forward": Counter(), "backward": Counter()}
    for i in range(n_batches):
        if hasattr(parallel.model, "set_requires_gradient_sync"):
            parallel.model.set_requires_gradient_sync(i == n_batches - 1)
        with parallel.tensor.loss_context(parallel.layout), counting() as mode:
            loss = parallel.model(
                tokens_BL, finish=trainer.task.finish, targets={"labels_BL": tokens_BL}
            )[0]
            found["forward"].update(calls(mode))
            loss.backward()
            found["backward"].update(calls(mode))
    found["backward"].subtract(found["forward"])
    return {name: dict(+counts) for name, counts in found.items()}


def count_step(world: World, edits: list[str], accumulation: int) -> dict[str, int]:
    """Calls per collective in a whole optimizer step of a pipeline."""
    trainer = build(tiny(*edits, f"set:local_batch_size={4 // accumulation}"))
    trainer.check(world.size)
    trainer.data.setup()
    parallel = set_up_model(trainer, world)
    session = Session(trainer, parallel, torch.optim.SGD(parallel.model.parameters(), lr=0.0))
    step = microbatches(session, 0)
    assert len(step) == accumulation
    with counting() as mode:
        train_step(session, step)
    return dict(calls(mode))


def calls(mode: CommDebugMode) -> Counter:
    return Counter(
        {
            str(operation).rpartition(".")[2].strip("_"): n
            for operation, n in mode.get_comm_counts().items()
        }
    )


def main(path: str) -> None:
    world = start_world("cpu")
    if world.size == 4:
        edits = ["fiddler:pipeline(2, '1F1B', 2)", "fiddler:fsdp(2)"]
        counts = {str(n): count_step(world, edits, n) for n in (1, 2)}
    else:
        counts = {name: count(world, edits) for name, edits in CASES.items()}
        for name, (recipe, edit) in RECOMPUTING.items():
            for mode in ("none", "selective", "full"):
                edits = [edit, f"tag:ActivationCheckpointing={mode}"]
                counts[f"{name} {mode}"] = count(world, edits, recipe=recipe)
        counts["fsdp, two batches"] = count(world, CASES["fsdp default"], 2)
    if world.is_main:
        Path(path).write_text(json.dumps(counts, indent=1))
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
