"""Run on several ranks by test_fsdp.py: compares a sharded model with the whole one.

Usage: torchrun --nproc-per-node=2 -m tests.parallel.sharded_model RESULTS.json
"""

import json
import sys
import traceback

import torch
from torch.distributed.tensor import DTensor

from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.loop import train_step
from nanigpt.training.setup import Session, set_up_model
from tests.support import built_model, tiny


def sharded_model(cfg, world):
    trainer = build(cfg)
    trainer.parallel = set_up_model(trainer, world)
    return trainer


def summed(model, task, rows):
    """The sum of losses of rows of tokens."""
    return model(rows[:, :-1], finish=task.finish, targets={"labels_BL": rows[:, 1:]})[0]


def untied(world):
    check_weights_and_gradients(tiny(), world)


def tied(world):
    cfg = tiny(recipe="llama3_1b")
    model = check_weights_and_gradients(cfg, world)
    assert model.head.weight is model.embedding.weight
    state = model.state_dict()
    assert state["head.weight"]._local_tensor.data_ptr() == (
        state["embedding.weight"]._local_tensor.data_ptr()
    )
    buffers = {id(b) for _, b in model.named_buffers(remove_duplicate=False)}
    assert len(buffers) == 1, "one RoPE table"


def check_weights_and_gradients(cfg, world):
    trainer = sharded_model(cfg, world)
    whole = built_model(cfg)
    assert [n for n, _ in trainer.model.named_parameters()] == [
        n for n, _ in whole.named_parameters()
    ]
    for name, p in trainer.model.named_parameters():
        assert isinstance(p, DTensor), name
        assert torch.equal(p.full_tensor(), whole.get_parameter(name)), name
    tokens = torch.randint(512, (4, 33), generator=torch.Generator().manual_seed(0))
    size = 4 // world.size
    mine = tokens[size * world.rank : size * (world.rank + 1)]
    for rows, model in ((tokens, whole), (mine, trainer.model)):
        loss = summed(model, trainer.task, rows)
        (loss / tokens[:, 1:].numel()).backward()
    for name, p in trainer.model.named_parameters():
        expected = whole.get_parameter(name).grad
        torch.testing.assert_close(p.grad.full_tensor(), expected, atol=1e-6, rtol=1e-4)
    return trainer.model


def bf16(world):
    """One byte occurs thousands of times: its row's gradient must not be summed in bf16."""
    edits = ("tag:SequenceLength=1024", "tag:ComputeDType=bfloat16")
    for recipe in ("llama3_debug", "llama3_1b"):  # untied, tied
        trainer = sharded_model(tiny(*edits, recipe=recipe), world)
        exact = built_model(tiny(edits[0], recipe=recipe))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(512, (8, 1025), generator=generator)
        tokens[torch.rand(tokens.shape, generator=generator) < 0.5] = 7
        size = 8 // world.size
        mine = tokens[size * world.rank : size * (world.rank + 1)]
        for rows, model in ((tokens, exact), (mine, trainer.model)):
            loss = summed(model, trainer.task, rows)
            (loss / tokens[:, 1:].numel()).backward()
        got = trainer.model.embedding.weight.grad.full_tensor()
        want = exact.embedding.weight.grad
        error = (got - want).norm() / want.norm()
        assert error < 0.05, f"{recipe}: relative error {error:.3f} of the embedding's gradient"


def masked(world):
    """Ranks with different numbers of labels: the mean is over all labels, not over ranks."""
    cfg = tiny("set:global_batch_size=4")
    trainer = sharded_model(cfg, world)
    trainer.data.setup()
    batch = trainer.data.train_batch(range(4), seed=0)
    batch.labels_BL[0, 5:] = -100
    batch.labels_BL[1] = -100
    valid = batch.labels_BL != -100
    whole = built_model(cfg)
    expected = torch.nn.functional.cross_entropy(
        whole(batch.tokens_BL)[valid], batch.labels_BL[valid]
    )
    expected.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in whole.parameters()])
    begin = 2 * world.rank
    microbatches = [
        type(batch)(batch.tokens_BL[i : i + 1], batch.labels_BL[i : i + 1])
        for i in range(begin, begin + 2)
    ]
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
    row = train_step(Session(trainer, trainer.parallel, optimizer), microbatches)
    torch.testing.assert_close(row["loss"], expected.detach())
    torch.testing.assert_close(row["grad_norm"], norm, rtol=1e-4, atol=1e-6)


def main(results: str) -> None:
    world = start_world("cpu")
    outcome = {}
    for case in (untied, tied, masked, bf16):
        try:
            case(world)
            outcome[case.__name__] = "ok"
        except Exception:  # reported by the test, with the traceback
            outcome[case.__name__] = f"rank {world.rank}\n{traceback.format_exc()}"
            break
    if world.is_main:
        with open(results, "w") as stream:
            json.dump(outcome, stream)
    stop_world()


if __name__ == "__main__":
    main(sys.argv[1])
