"""`check` calls a loss once, and names a loss that training cannot use."""

import fiddle as fdl
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nanigpt.config.check.build import check
from nanigpt.data.batch import IGNORED
from nanigpt.experiments.pretraining import training
from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy
from nanigpt.tasks.language_modeling import LanguageModeling
from nanigpt.tasks.loss_check import loss_problems
from tests.support import tiny


def each(head, x, labels):
    logits = head(x).flatten(0, 1).float()
    return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")


def plain(head, x, labels):
    return each(head, x, labels).sum()


def with_weights(head, x, labels):
    return plain(head, x, labels), x.new_ones(())


def broken(head, x, labels):
    return plain(head, x[..., :3], labels)


def low(head, x, labels):
    return plain(head, x, labels).bfloat16()


def detached(head, x, labels):
    return plain(head, x, labels).detach()


def a_number(head, x, labels):
    return 1.0


def chosen(head, x, labels):
    return plain(head, x, labels) if (labels != IGNORED).any().item() else x.sum()


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.ones(256))
        self.scales = torch.ones(256)

    def forward(self, head, x, labels):
        return plain(head, x * self.scales, labels)


def problems_of(loss, *edits):
    cfg = tiny(*edits)
    cfg.task.loss = loss
    trainer = check(cfg)
    return trainer, trainer.problems(1)


CALL = "expected a float32 scalar, the sum of losses, from a call with (head, x_BLD [2, 64, 128], "


@pytest.mark.parametrize(
    "loss, message",
    [
        (each, "not a tensor of shape [128]"),
        (with_weights, "not a result of type tuple"),
        (a_number, "not a result of type float"),
        (low, "not one of bfloat16"),
        (detached, "not one without a gradient"),
        (broken, "but it raised RuntimeError: "),
    ],
)
def test_a_loss_that_training_cannot_use_is_named(loss, message):
    trainer, [problem] = problems_of(loss)
    assert problem.component is trainer.task and problem.argument == "loss"
    assert f"loss={loss.__name__}: {CALL}" in str(problem)
    assert message in str(problem)


def test_a_loss_without_a_problem():
    trainer, found = problems_of(plain)
    assert found == []
    for loss in (CrossEntropy(z_loss=1e-4), LinearCrossEntropy(chunk_size=8)):
        tokens = torch.zeros(2, 64, dtype=torch.long, device="meta")
        assert loss_problems(loss, trainer.model, tokens) == []


def test_a_loss_that_needs_values_is_told(caplog):
    _, found = problems_of(chosen)
    assert found == []
    assert "the loss chosen is not checked: it does not run on meta tensors" in caplog.text


def test_tensors_of_a_loss_have_no_values():
    trainer, found = problems_of(fdl.Config(Weighted))
    assert ["scales" in found[0].expected, "weights" in found[1].expected] == [True, True]
    assert all(p.component is trainer.task for p in found)
    assert "whose tensor 'scales' it makes when it is called" in str(found[0])


class Small(nn.Module):
    """A language model that is no decoder, and has no size."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 8)
        self.out = nn.Linear(8, 256)

    def forward(self, tokens, *, finish=None, targets=None):
        x = self.embedding(tokens)
        return self.out(x) if finish is None else finish(self.out, x, **targets)


@pytest.mark.parametrize("loss, n", [(plain, 0), (each, 1), (broken, 1)])
def test_a_model_that_is_no_decoder_calls_the_loss_itself(loss, n):
    cfg = tiny()
    data, task = cfg.data, fdl.Config(LanguageModeling, loss=loss)
    trainer = check(
        training(
            fdl.Config(Small), data, task, lr=1e-3, steps=20, warmup_steps=1, global_batch_size=4
        )
    )
    found = trainer.problems(1)
    assert [p.argument for p in found] == ["loss"] * n
    assert all("x_BLD [2, 64, 8]" in str(p) for p in found)
