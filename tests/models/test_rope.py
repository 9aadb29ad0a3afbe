"""RoPE's scalings against those of transformers."""

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling

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


@pytest.mark.parametrize("factor, low, high", [(8.0, 1.0, 4.0), (16.0, 1.0, 1.0)])
def test_llama3(factor, low, high):
    """Of Llama 3.1 and of Llama 4, which blends nothing."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": 8192,
    }
    config = transformers.LlamaConfig(head_dim=128, rope_parameters=rope)
    expected_F, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    scaling = Llama3Scaling(factor=factor, low_freq_factor=low, high_freq_factor=high)
    frequency_F = 500_000.0 ** -(torch.arange(0, 128, 2, dtype=torch.float32) / 128)
    scaled_F = scaling(frequency_F, 500_000.0)
    torch.testing.assert_close(scaled_F, expected_F, atol=0, rtol=1e-5)
    blended_F = (scaled_F < 0.999 * frequency_F) & (scaled_F > 1.001 * frequency_F / factor)
    assert blended_F.any() == (low < high)


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
        (
            {"factor": 4.0, "beta_fast": 1.0},
            "beta_slow=1.0: expected more than 0, less than beta_fast=1.0",
        ),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        YarnScaling(original_max_positions=4096, **arguments)
