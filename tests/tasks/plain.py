"""A task that is no language model, of plain modules: a multilayer perceptron learns a function.

Run on several ranks by test_plain.py: torchrun -m tests.tasks.plain FOLDER
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import fiddle as fdl
import torch
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.data.batch import Batch
from nanigpt.experiments.pretraining import training
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.tasks.task import Task
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.trackers.json_lines import JsonLines
from nanigpt.training.trainer import Trainer
from tests.support import metrics

DIM, HIDDEN, ROWS = 6, 32, 8


@dataclass(frozen=True)
class Points(Batch):
    x_BD: torch.Tensor
    y_B: torch.Tensor


class Function:
    """Pairs of random points and values; a sample's number is the seed of its point."""

    digest = "a function"
    n_validation = 40

    def setup(self) -> None:
        self.ready = True

    def train_batch(self, samples: range, /, *, seed: int) -> Points:
        return self._points([seed * 10**6 + i for i in samples])

    def validation_batch(self, samples: list[int], /) -> Points:
        return self._points([-1 - i for i in samples])

    def _points(self, seeds: list[int]) -> Points:
        assert self.ready
        generators = (torch.Generator().manual_seed(seed) for seed in seeds)
        x_BD = torch.stack([torch.randn(DIM, generator=g) for g in generators])
        return Points(x_BD, (2 * x_BD[:, 0]).sin() + x_BD[:, 1])


class Regression(Task):
    """The squared error, and how far off values are, which is only looked at."""

    def losses(self, model, /):
        return ("loss", "distance")

    def inputs(self, batch, /):
        return batch.x_BD, {}

    def targets(self, batch, /):
        return {"y_B": batch.y_B}

    def weight(self, batch, /):
        return torch.tensor(float(len(batch.y_B)), device=batch.y_B.device)

    def finish(self, head, hidden, /, *, y_B):
        errors_B = head(hidden)[:, 0] - y_B
        return torch.stack([errors_B.square().sum(), errors_B.abs().sum()])

    def objective(self, means, model, /):
        return means[0]

    def show(self, parallel, data, /):
        return "a sample of Regression"


class Perceptron(nn.Module):
    """A plain module; `recomputed` and the like it knows nothing of."""

    def __init__(self, depth: int = 2):
        super().__init__()
        self.first = nn.Linear(DIM, HIDDEN)
        self.layers = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(depth))
        self.head = nn.Linear(HIDDEN, 1)

    def forward(self, x_BD, *, finish=None, targets=None):
        x_BH = self.first(x_BD).relu()
        for layer in self.layers:
            x_BH = x_BH + layer(x_BH).relu()
        return self.head(x_BH) if finish is None else finish(self.head, x_BH, **targets)


def config(steps: int = 60) -> fdl.Config[Trainer]:
    cfg = training(
        fdl.Config(Perceptron),
        data=fdl.Config(Function),
        task=fdl.Config(Regression),
        lr=1e-2,
        global_batch_size=ROWS,
        steps=steps,
        warmup_steps=2,
    )
    cfg.trackers = [fdl.Config(JsonLines)]
    cfg.metrics.peak_flops = 1e15
    cfg.evaluations["val"].interval = cfg.checkpointer.interval = 20
    return cfg


def train(world: World, folder: Path) -> list[dict]:
    build(config()).run(RunDirectory(folder), world)
    world.barrier()
    return metrics(folder)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    world = start_world("cpu")
    rows = train(world, folder / "run")
    if world.is_main:
        (folder / "rows.json").write_text(json.dumps(rows))
    stop_world()
