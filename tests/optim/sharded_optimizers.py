"""Run on several ranks by test_sharded.py: steps on shards against steps on whole parameters.

Usage: torchrun --nproc-per-node=4 -m tests.optim.sharded_optimizers FOLDER CASE...
"""

import json
import sys
import traceback
from pathlib import Path

import torch

from nanigpt.config.check.build import build
from nanigpt.optim.adamw import adamw
from nanigpt.optim.muon import muon
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.checkpoint import Checkpointer, Progress
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import set_up_model
from tests.support import built_model, tiny


def step(optimizer, model):
    """With gradients that are known of every element, so that shards and wholes have the same."""
    for p in model.parameters():
        p.grad = (p.detach() * 100).sin() + 0.1
    optimizer.step()
    optimizer.zero_grad()


def sharded(cfg, world):
    trainer = build(cfg)
    model = set_up_model(trainer, world).model
    return trainer.optimizer(model.named_parameters()), model


def whole(cfg):
    model = built_model(cfg)
    return build(cfg).optimizer(model.named_parameters()), model


def largest_difference(cfg, world):
    """Of weights after three steps, on shards and on whole ones."""
    optimizer, model = sharded(cfg, world)
    expected_optimizer, expected = whole(cfg)
    for _ in range(3):
        step(optimizer, model)
        step(expected_optimizer, expected)
    begin = built_model(cfg)
    worst = 0.0
    for name, p in model.named_parameters():
        got = p.full_tensor() if hasattr(p, "full_tensor") else p
        want = expected.get_parameter(name)
        assert not torch.equal(want, begin.get_parameter(name)), f"{name} did not change"
        worst = max(worst, (got - want).abs().max().item())
    return worst


MUON = ("fiddler:muon(lr=0.01)", "set:optimizer.others.lr=0.001")
LR = 0.01


def muon_fsdp_tp(world, folder):
    difference = largest_difference(tiny(*MUON, "tag:TensorParallel=2"), world)
    assert difference < 1e-3 * LR, difference


def muon_writes_a_checkpoint(world, folder):
    optimizer, model = sharded(tiny(*MUON, "tag:TensorParallel=2"), world)
    step(optimizer, model)
    Checkpointer().save(RunDirectory(folder / "muon"), world, model, optimizer, Progress(step=1))


def muon_experts(world, folder):
    cfg = tiny(*MUON, "tag:ExpertParallel=2", "tag:TensorParallel=2", recipe="qwen3_moe_debug")
    difference = largest_difference(cfg, world)
    assert difference < 1e-3 * LR, difference


def muon_copies_of_a_tied_model(world, folder):
    cfg = tiny(*MUON, "tag:DataParallelReplicate=2", recipe="llama3_1b")
    difference = largest_difference(cfg, world)
    assert difference < 1e-3 * LR, difference


def muon_uneven_shards(world, folder):
    """Of 7 rows ranks have 2, 2, 2 and 1, of 5 the last one has none; 3 of 4 ranks get a matrix. Of
    6 rows that `tp` halved, FSDP's ranks have 2 and 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    def model(*shapes):
        torch.manual_seed(0)
        return torch.nn.Sequential(*(torch.nn.Linear(*shape, bias=False) for shape in shapes))

    def compare(expected, split):
        for each in (expected, split):
            optimizer = muon(each.named_parameters(), others=adamw, lr=LR, dtype=torch.float32)
            step(optimizer, each)
        for p, q in zip(split.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(p.full_tensor(), q.detach(), atol=1e-3 * LR, rtol=0)

    shapes = [(10, 7), (10, 7), (10, 7), (3, 5)]
    split = model(*shapes)
    fully_shard(split, mesh=init_device_mesh("cpu", (4,)))
    assert split[3].weight._local_tensor.shape == ((2, 2, 1, 0)[world.rank], 3)
    compare(model(*shapes), split)

    mesh, split = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp")), model((10, 6))
    parallelize_module(split[0], mesh["tp"], ColwiseParallel())
    fully_shard(split, mesh=mesh["fsdp"])
    assert split[0].weight._local_tensor.shape == ((2, 1)[world.rank // 2], 10)
    compare(model((10, 6)), split)


def bfloat16_state(world, folder):
    cfg = tiny("fiddler:optimizer_state(bfloat16)", "tag:TensorParallel=2")
    difference = largest_difference(cfg, world)
    assert difference < 1e-7, difference  # of elements each by itself


def eight_bit_state(world, folder):
    """Blocks are of shards, so it is not the same as on whole parameters, but near it."""
    cfg = tiny("set:optimizer.state=8bit", "tag:TensorParallel=2")
    difference = largest_difference(cfg, world)
    assert 0 < difference < 0.3 * cfg.optimizer.lr, difference


def eight_bit_resumes_on_the_same_ranks(world, folder):
    cfg = tiny("set:optimizer.state=8bit", "tag:TensorParallel=2")
    optimizer, model = sharded(cfg, world)
    step(optimizer, model)
    moment = optimizer.state[model.get_parameter("layers.0.feed_forward.w1.weight")]["exp_avg"]
    assert moment._local_tensor.codes.dtype == torch.uint8
    run = RunDirectory(folder / "eight_bit")
    Checkpointer().save(run, world, model, optimizer, Progress(step=1))
    step(optimizer, model)
    other_optimizer, other = sharded(cfg, world)
    assert Checkpointer().load_latest(run, world, other, other_optimizer).step == 1
    step(other_optimizer, other)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p._local_tensor, q._local_tensor), name


OF_FOUR_RANKS = (
    muon_fsdp_tp,
    muon_writes_a_checkpoint,
    muon_experts,
    muon_uneven_shards,
)
OF_TWO_RANKS = (
    muon_copies_of_a_tied_model,
    bfloat16_state,
    eight_bit_state,
    eight_bit_resumes_on_the_same_ranks,
)


def main(folder: str, *names: str) -> None:
    world = start_world("cpu")
    outcome = {}
    for name in names:
        try:
            globals()[name](world, Path(folder))
            outcome[name] = "ok"
        except Exception:  # reported by the test, with the traceback
            outcome[name] = f"rank {world.rank}\n{traceback.format_exc()}"
    every = world.gather(outcome)
    if world.is_main:
        told = {name: max((one[name] for one in every), key="ok".__ne__) for name in names}
        (Path(folder) / "results.json").write_text(json.dumps(told))
    stop_world()


if __name__ == "__main__":
    main(*sys.argv[1:])
