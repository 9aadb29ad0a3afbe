"""RoPE's scalings against those of transformers."""

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanigpt.models.rope import RotaryEmbedding, YarnScaling

# head_dim, theta, original positions, arguments of both: Qwen3's extension to 131,072 positions,
# GPT-OSS, DeepSeek-V3, and ramps that begin or end outside the frequencies.
CASES = [
    (128, 1e6, 32_768, {"factor": 4.0}),
    (64, 150_000.0, 4096, {"factor": 32.0, "truncate": False}),
    (64, 10_000.0, 4096, {"factor": 40.0, "attention_factor": 1.0}),
    (16, 100.0, 16, {"factor": 2.0, "beta_fast": 2.0, "beta_slow": 0.5}),
    (8, 10_000.0, 4000, {"factor": 8.0, "beta_fast": 4.0, "beta_slow": 1e-5}),
]


@pytest.mark.parametrize("head_dim, theta, original, arguments", CASES)
def test_yarn(head_dim, theta, original, arguments):
    rope = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "original_max_position_embeddings": original,
        **arguments,
    }
    config = transformers.Qwen3Config(head_dim=head_dim, rope_parameters=rope)
    expected_F, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    scaling = YarnScaling(original_max_positions=original, **arguments)
    exponent_F = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    torch.testing.assert_close(scaling(theta**-exponent_F, theta), expected_F, atol=0, rtol=1e-6)
    assert scaling.attention_factor == pytest.approx(factor)
    assert not torch.equal(expected_F, theta**-exponent_F), "the case scales nothing"


def test_the_attention_factor_multiplies_what_is_rotated():
    tables = []
    for factor in (1.0, 1.5):
        rope = RotaryEmbedding(
            head_dim=8,
            max_sequence_length=32,
            scaling=YarnScaling(factor=4.0, original_max_positions=8, attention_factor=factor),
        )
        rope.to_empty(device="cpu")
        rope.reset_buffers()
        tables.append(rope(torch.ones(1, 32, 1, 8)))
    torch.testing.assert_close(tables[1], 1.5 * tables[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"factor": 0.5}, "factor=0.5"),
        ({"factor": 4.0, "beta_fast": 1.0}, "beta_slow=1.0, beta_fast=1.0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        YarnScaling(original_max_positions=4096, **arguments)
