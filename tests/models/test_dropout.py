"""Dropout: how much is dropped, what decides it, and that recomputation drops the same."""

import itertools

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.models.dropout import Dropout
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.init import initialize, materialize
from tests.support import QUICK, tiny, train

SHAPE = (4, 24, 64)
DROPPED = "set:model.layers[*].dropout=@dropout(0.2)"


def made(p=0.3, *, seed=0, name="dropout"):
    model = torch.nn.ModuleDict({name: Dropout(p=p)})
    materialize(model, "cpu")
    initialize(model, seed=seed)
    return model[name]


def kept(module, first=0, use=0, shape=SHAPE):
    return module(torch.ones(shape), torch.tensor(first), use) > 0


def agreement(a, b):
    """How often two choices agree, minus what independent ones would; in standard deviations."""
    n, p, q = a.numel(), a.float().mean(), b.float().mean()
    expected = p * q + (1 - p) * (1 - q)
    return ((a == b).float().mean() - expected) / (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_of_p_is_dropped_and_the_mean_stays(p):
    x = torch.rand(64, 64, 128).add_(0.5).requires_grad_()  # no zeros of its own
    y = made(p)(x)
    zero = y == 0
    deviation = (p * (1 - p) / x.numel()) ** 0.5
    assert abs(zero.float().mean() - p) < 4 * deviation
    for dim in range(3):  # no row, position or feature is preferred
        others = [d for d in range(3) if d != dim]
        n = x.numel() // x.shape[dim]
        assert (zero.float().mean(others) - p).abs().max() < 5 * (p * (1 - p) / n) ** 0.5
    torch.testing.assert_close(y[~zero], (x / (1 - p))[~zero])
    y.sum().backward()
    torch.testing.assert_close(x.grad, (~zero).float() / (1 - p))


def test_choices_are_independent_of_their_neighbours():
    mask = kept(made(0.3), shape=(32, 48, 96))
    shifts = [s for s in itertools.product(range(3), repeat=3) if any(s)]
    for b, i, d in shifts:
        ends = [None if not s else -s for s in (b, i, d)]
        other = mask[b:, i:, d:]
        assert abs(agreement(mask[: ends[0], : ends[1], : ends[2]], other)) < 5, (b, i, d)


def test_what_decides():
    mask = kept(made())
    assert torch.equal(mask, kept(made()))
    others = {
        "another seed": kept(made(seed=1)),
        "another name": kept(made(name="other")),
        "other rows": kept(made(), first=4),
        "rows far on": kept(made(), first=1 << 33),
        "another use": kept(made(), use=1),
    }
    placed = made()
    placed.place = 1
    others["another place"] = kept(placed)
    for (one, a), (two, b) in itertools.combinations({"it": mask, **others}.items(), 2):
        assert abs(agreement(a, b)) < 5, (one, two)


def test_rows_and_parts_are_pieces_of_one_choice():
    mask = kept(made())
    assert torch.equal(mask[2:], kept(made(), first=2)[:2])
    for part in range(3):
        module = made()
        module.part = part
        piece = kept(module, shape=(4, 8, 64))
        assert torch.equal(piece, mask[:, 8 * part : 8 * part + 8])


def test_rows_are_counted_while_training_only():
    module, x = made(), torch.ones(SHAPE)
    first = module(x)
    assert not torch.equal(first, module(x))
    assert module.rows == 8
    module.take_back()
    assert module.rows == 4
    with torch.no_grad():
        assert torch.equal(module(x), x)
    module.eval()
    assert torch.equal(module(x), x)
    assert module.rows == 4


def test_none_costs_nothing():
    module = made(0.0)
    x = torch.ones(SHAPE)
    assert module(x) is x
    assert not list(module.buffers())
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"p={p}: expected 0 or more, less than 1"):
            Dropout(p=p)


def curve(tmp_path, name, *edits):
    cfg = tiny("fiddler:steps(4)", *QUICK, *edits)
    rows = train(cfg, tmp_path / name)
    return [(row["loss"], row["grad_norm"]) for row in rows]


def test_recomputed_and_compiled_layers_drop_the_same(tmp_path):
    plain = curve(tmp_path, "plain", DROPPED)
    for mode in ("full", "selective"):
        again = curve(tmp_path, mode, DROPPED, f"tag:ActivationCheckpointing={mode}")
        assert again == plain
    compiled = "set:parallelizer.compile=@compile(backend='aot_eager')"
    both = (compiled, "tag:ActivationCheckpointing=selective")
    for name, edits in {"compiled": [compiled], "both": both}.items():
        found = curve(tmp_path, name, DROPPED, *edits)
        assert found == [pytest.approx(step, rel=1e-4) for step in plain]
    assert plain != curve(tmp_path, "without")


def test_batches_in_pieces_drop_the_same(tmp_path):
    whole = curve(tmp_path, "whole", DROPPED)
    pieces = curve(tmp_path, "pieces", DROPPED, "set:local_batch_size=2")
    assert pieces == [pytest.approx(step, rel=1e-4) for step in whole]


def test_a_resumed_run_goes_on(tmp_path):
    edits = ("set:checkpointer.interval=2", DROPPED)
    whole = curve(tmp_path, "run", *edits)
    last = tmp_path / "run" / "checkpoints" / "step_00000004"
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert curve(tmp_path, "run", *edits) == whole


def test_a_model_validates_without(tmp_path):
    cfg = tiny("fiddler:steps(1)", "tag:LearningRate=1e-12")
    dropping = tiny("fiddler:steps(1)", "tag:LearningRate=1e-12", DROPPED)
    losses = [train(c, tmp_path / str(i))[-1]["val_loss"] for i, c in enumerate((cfg, dropping))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_hugging_face_is_given_the_weights_alone():
    model = build(tiny(DROPPED, recipe="llama3_1b").model)
    assert family_of(model).model_type == "llama"


def test_the_config_has_one_for_each_layer():
    model = build(tiny(DROPPED).model)
    first, second = (layer.dropout for layer in model.layers)
    assert first is not second
