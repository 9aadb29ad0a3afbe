"""Run by test_outside_project.py: trains the outside project's recipes on the ranks there are.

Usage: [torchrun --nproc-per-node=2 -m] tests.examples.outside_runs FOLDER
"""

import json
import sys
from pathlib import Path

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.run_directory import RunDirectory

RECIPES = {
    "denoiser": ("config:outside_denoiser", "set:steps=12", "set:schedule.warmup_steps=3"),
    "language": (
        *("config:outside_language_model", "set:steps=6", "set:schedule.warmup_steps=2"),
        "set:task.sampler.max_new_tokens=5",
    ),
}
QUICK = ("fiddler:tensorboard(False)", "set:evaluations[val].n_samples=16")

MESHES = {
    1: {"one": ()},
    2: {
        "fsdp": (),
        "tp": ("tag:TensorParallel=2",),
        "unsplit": (*("tag:TensorParallel=2", "set:parallelizer.tensor.sequence_parallel=False"),),
    },
}


def main(folder: str) -> None:
    world = start_world("cpu")
    for recipe, directives in RECIPES.items():
        for mesh, edits in MESHES[world.size].items():
            trainer = build(compose([*directives, *QUICK, *edits]))
            trainer.run(RunDirectory(Path(folder) / f"{recipe}-{mesh}"), world)
    stop_world()


def rows(folder: Path, recipe: str, mesh: str) -> list[dict]:
    path = folder / f"{recipe}-{mesh}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main(sys.argv[1])
