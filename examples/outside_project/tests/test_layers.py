"""The modules compute the documented results, and pass nanigpt's checks."""

import fiddle as fdl
import pytest
import torch
from outside_project.layers import LearnedPositionAttention, MeanSquareNorm, ReluSquared
from outside_project.tokenizer import AsciiTokenizer

from nanigpt.models.init import initialize, materialize


def made(kind, **arguments):
    """Return a module as a run makes it: constructed on meta, then given memory and values."""
    with torch.device("meta"):
        module = kind(**arguments)
    materialize(module, "cpu")
    initialize(module, seed=0)
    return module


def test_a_scale_that_reset_parameters_sets_survives_meta():
    assert made(ReluSquared, dim=4, hidden_dim=8, scale=0.25).scale.tolist() == [0.25] * 4


def test_the_norm_leaves_a_mean_square_of_one():
    y_BLD = made(MeanSquareNorm, dim=64)(7 * torch.randn(2, 3, 64))
    torch.testing.assert_close(y_BLD.square().mean(-1), torch.ones(2, 3), rtol=1e-4, atol=0)


def test_attention_sees_no_later_position():
    attention = made(LearnedPositionAttention, dim=8, n_heads=2, max_sequence_length=6)
    x_BLD = torch.randn(1, 6, 8)
    changed_BLD = x_BLD.clone()
    changed_BLD[:, 4:] += 1
    same, other = attention(x_BLD), attention(changed_BLD)
    assert torch.equal(same[:, :4], other[:, :4])
    assert not torch.equal(same[:, 4:], other[:, 4:])


@pytest.mark.parametrize("lower", [False, True])
def test_the_tokenizer_gives_back_what_it_knows(lower):
    tokenizer = AsciiTokenizer(lower=lower)
    text = "def f(x):\n\treturn X\N{SUPERSCRIPT TWO}"
    (ids,) = tokenizer.encode([text])
    expected = text.lower() if lower else text
    assert tokenizer.decode([*ids, tokenizer.end_id]) == expected[:-1] + "?"
    assert len(tokenizer.token_bytes()) == tokenizer.vocab_size


def test_a_refused_argument_reads_well():
    with pytest.raises(ValueError, match="n_heads=3: expected a divisor of dim=8"):
        fdl.build(fdl.Config(LearnedPositionAttention, dim=8, n_heads=3, max_sequence_length=4))
