"""Run on two ranks by test_loss.py: losses of a model whose vocabulary is split, against the whole.

Usage: torchrun --nproc-per-node=2 -m tests.parallel.split_loss DONE CASE ...
"""

import sys
from pathlib import Path

import fiddle as fdl
import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from nanigpt.config.check.build import build
from nanigpt.data.batch import IGNORED, TokenBatch
from nanigpt.parallel.world import World, start_world, stop_world
from nanigpt.training.setup import set_up_model
from tests.support import built_model, tiny

PLAIN, CHUNKED = "@cross_entropy(z_loss=0.01)", "@linear_cross_entropy(20, z_loss=0.01)"
CASES = {
    "plain": [f"set:task.loss={PLAIN}"],
    "plain gathered": [f"set:task.loss={PLAIN}", "set:parallelizer.tensor.loss_parallel=False"],
    "chunked": [f"set:task.loss={CHUNKED}"],
    "chunked no sp": [
        f"set:task.loss={CHUNKED}",
        "set:parallelizer.tensor.sequence_parallel=False",
    ],
    "chunked gathered": [f"set:task.loss={CHUNKED}", "set:parallelizer.tensor.loss_parallel=False"],
    "chunked compiled": [f"set:task.loss={CHUNKED}"],
    "outside": [],
}


class Smoothed:
    """A loss of another package, which knows nothing of split logits."""

    def __call__(self, head, x_BLD, labels_BL):
        logits_TV, labels_T = head(x_BLD).flatten(0, 1), labels_BL.flatten()
        options = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": 0.1}
        return F.cross_entropy(logits_TV, labels_T, **options)


def compare(world: World, case: str) -> None:
    cfg = tiny(*CASES[case], "fiddler:tensor_parallel(2)")
    if case == "outside":
        cfg.task.loss = fdl.Config(Smoothed)
    whole, trainer = built_model(cfg), build(cfg)
    parallel = set_up_model(trainer, world)
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(512, (2, 33), generator=random)
    batch = TokenBatch(tokens[:, :-1].clone(), tokens[:, 1:].clone())
    batch.labels_BL[torch.rand(batch.labels_BL.shape, generator=random) < 0.2] = IGNORED
    task = trainer.task
    named = {"finish": task.finish, "targets": task.targets(batch)}
    [expected] = whole(batch.tokens_BL, **named)
    expected.backward()
    with torch.no_grad():
        validation = whole(batch.tokens_BL, **named)
    if "compiled" in case:
        compute = task.loss.compute
        task.loss.compute = torch.compile(compute, backend="aot_eager", fullgraph=True)
    got = parallel.forward_backward(task, [batch], torch.tensor(1.0))["loss"]
    torch.testing.assert_close(got, expected.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(parallel.evaluate(task, batch), validation)
    for name, p in parallel.model.named_parameters():
        want = whole.get_parameter(name).grad
        error = (whole_of(p.grad) - want).norm() / want.norm()
        assert error < 1e-5, f"{name}: gradient is off by {error:.1e}"


def whole_of(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def main(done: str, *cases: str) -> None:
    world = start_world("cpu")
    for case in cases:
        print(f"rank {world.rank}: {case}", flush=True)
        compare(world, case)
    if world.is_main:
        Path(done).write_text("\n".join(cases))
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
