"""What a task promises: sums over a weight, of which an empty one gives no gradient."""

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.data.batch import IGNORED, Batch, TokenBatch
from nanigpt.parallel.world import start_world
from nanigpt.training.loop import evaluate, train_step
from nanigpt.training.setup import new_session
from tests.support import tiny


@pytest.mark.parametrize("loss", ["cross_entropy(z_loss=0.01)", "linear_cross_entropy(20)"])
@pytest.mark.parametrize("edits", [[], ["fiddler:multi_token(2)"]], ids=["plain", "multi-token"])
def test_a_step_without_labels_changes_nothing_and_makes_no_nan(edits, loss):
    trainer = build(tiny(*edits, f"set:task.loss=@{loss}", "set:optimizer.weight_decay=0"))
    trainer.data.setup()
    session = new_session(trainer, start_world("cpu"))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    batch = trainer.data.train_batch(range(8), seed=0)
    batch.labels_BL.fill_(IGNORED)
    row = train_step(session, [batch])
    assert row["loss"] == 0 and row["grad_norm"] == 0
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]), name
    trained = train_step(session, [trainer.data.train_batch(range(8), seed=0)])
    assert trained["grad_norm"] > 0 and trained["loss"].isfinite()


def test_an_evaluation_without_labels_has_no_numbers():
    trainer = build(tiny())
    trainer.data.setup()
    plain = trainer.data.validation_batch

    def masked(samples):
        batch = plain(samples)
        return batch.replace(labels_BL=torch.full_like(batch.labels_BL, IGNORED))

    session = new_session(trainer, start_world("cpu"))
    assert evaluate(trainer, session.parallel).keys() == {"val_loss", "val_bits_per_byte"}
    trainer.data.validation_batch = masked
    assert evaluate(trainer, session.parallel) == {}


def test_a_batch_is_cut_where_its_columns_have_the_sequence():
    tokens = torch.arange(12).view(2, 6)
    batch = TokenBatch(tokens, tokens + 1, documents_BL=tokens // 6)
    part = batch.cut(torch.tensor([1, 4]))
    assert part.tokens_BL.tolist() == [[1, 4], [7, 10]]
    assert part.labels_BL.tolist() == [[2, 5], [8, 11]]
    assert part.documents_BL.tolist() == [[0, 0], [1, 1]]
    assert part.positions_BL.tolist() == [[1, 4], [1, 4]]
    again = part.cut(torch.tensor([1]))
    assert again.positions_BL.tolist() == [[4], [4]]


def test_columns_without_the_sequence_stay_whole():
    class Labelled(TokenBatch):
        sequence_dims = {"tokens_BL": 1, "positions_BL": 1}

    tokens = torch.arange(12).view(2, 6)
    part = Labelled(tokens, torch.tensor([3, 4])).cut(torch.tensor([0, 5]))
    assert part.tokens_BL.tolist() == [[0, 5], [6, 11]] and part.labels_BL.tolist() == [3, 4]
    assert Batch.sequence_length(Labelled(tokens, tokens)) == 6
