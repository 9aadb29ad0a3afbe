"""Run on several ranks by test_float8_ranks.py: trains cases, and writes what one process has too.

Usage: torchrun --nproc-per-node=2 -m tests.precision.float8_ranks FOLDER CASE ...
"""

import itertools
import sys
from pathlib import Path

import fiddle as fdl
import torch

from nanigpt.config.check.build import build
from nanigpt.models.float8_recipe import ordinary
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.tasks.cross_entropy import CrossEntropy
from nanigpt.training.checkpoint import Progress, model_state
from nanigpt.training.loop import evaluate, steps
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import resume
from tests.support import tiny

STEPS = 2
TENSORWISE = "fiddler:float8(emulate=True)"
ROWWISE = "fiddler:float8('rowwise', emulate=True)"
EXPERTS = "fiddler:float8('rowwise', emulate=True, experts=True)"
COMPILE = "set:parallelizer.compile=@compile(backend='aot_eager')"

# What each is compared with has the first of its edits alone, and one process.
CASES = {
    "fsdp": [TENSORWISE],
    "fsdp resumed": [TENSORWISE],
    "fsdp head": ["fiddler:float8(emulate=True, head=True)"],
    "fsdp not gathered": [TENSORWISE, "set:parallelizer.float8.all_gather=False"],
    "fsdp rowwise": [ROWWISE],
    "fsdp offload": [TENSORWISE, "set:parallelizer.fsdp.cpu_offload=True"],
    "fsdp recompute compile": [TENSORWISE, "tag:ActivationCheckpointing=full", COMPILE],
    "hsdp": [TENSORWISE, "fiddler:hsdp(2)"],
    "tp": [TENSORWISE, "fiddler:tensor_parallel(2)"],
    "tp rowwise": [ROWWISE, "fiddler:tensor_parallel(2)"],
    "tp compile": [TENSORWISE, "fiddler:tensor_parallel(2)", COMPILE],
    "tp fsdp": [TENSORWISE, "fiddler:tensor_parallel(2)"],
    "pp": [TENSORWISE, "fiddler:pipeline(2, '1F1B', 2)"],
    "cp": [TENSORWISE, "fiddler:context_parallel(2)"],
    "experts": [EXPERTS],
    "experts ep": [EXPERTS, "fiddler:expert_parallel(2)"],
    "experts tp": [EXPERTS, "fiddler:tensor_parallel(2)"],
}


def config(*edits: str) -> fdl.Config:
    cfg = tiny(*edits, recipe="deepseek_v3_debug" if EXPERTS in edits else "llama3_debug")
    # Activations have a scale for what is multiplied at a time: two sequences in every case, which
    # are the parts that a pipeline has of four.
    cfg.local_batch_size = 4 if cfg.parallelizer.mesh.pp == 2 else 2
    if "head=True" in "".join(edits):
        cfg.task.loss = fdl.Config(CrossEntropy)  # which calls the head for its product
    cfg.evaluations["val"].batch_size, cfg.evaluations["val"].n_samples = 2, 4
    return cfg


def train(cfg: fdl.Config, world: World, folder: Path, *, save: bool = False) -> dict:
    """Losses and gradient norms of two steps, and the whole weights after them.

    A checkpoint in `folder` is where training begins; `save` leaves one there.
    """
    trainer, run = build(cfg), RunDirectory(folder)
    trainer.schedule = lambda step, steps: 1.0  # no warm-up, so that steps differ more
    session = resume(trainer.prepare(world, run))
    parallel = session.parallel
    session.progress = Progress()  # weights of a checkpoint, and the first samples
    initial = weights(parallel.model)
    computed_from = set()

    def look(layer: torch.nn.Module, _: object) -> None:
        weight = getattr(layer.weight, "_local_tensor", layer.weight)
        computed_from.add(getattr(weight, "_data", weight).dtype)

    for layer in parallel.float8 if cfg.parallelizer.compile is None else ():
        layer.register_forward_pre_hook(look)
    rows = [
        [row["loss"].item(), row["grad_norm"].item()]
        for row in itertools.islice(steps(session), STEPS)
    ]
    if save:
        model, optimizer = parallel.model, session.optimizer
        trainer.checkpointer.save(run, world, model, optimizer, session.progress)
    return {
        "rows": rows,
        "validation": evaluate(trainer, parallel)["val_loss"],
        "initial": initial,
        "weights": weights(parallel.model),
        "gathered": (len(parallel.float8), computed_from),
    }


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(weight) for name, weight in model_state(model).items()}


def whole(weight: torch.Tensor) -> torch.Tensor:
    weight = ordinary(weight)
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).clone()


def main(folder: str, *cases: str) -> None:
    world = start_world("cpu")
    for case in cases:
        torch.compiler.reset()
        done = train(config(*CASES[case]), world, Path(folder) / case, save=True)
        if world.is_main:
            torch.save(done, Path(folder) / f"{case}.pt")
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
