"""One number for a whole run: the depth decides width, heads, tokens, batch and learning rate."""

import fiddle as fdl

from nanigpt.config.registry import recipe
from nanigpt.errors import UsageError
from nanigpt.experiments.llama3 import llama3_model
from nanigpt.experiments.pretraining import pretraining
from nanigpt.training.trainer import Trainer

FAMILY = "Dial"

_HEAD_DIM = 64
_BATCH = 8  # sequences of a local batch, of which each global batch is a multiple


@recipe
def dial(
    depth: int = 12, vocab_size: int = 512, sequence_length: int = 1024
) -> fdl.Config[Trainer]:
    """Train a Llama of this depth, with all other numbers by published scaling rules.

    The width is 64 for each layer, as in nanochat (Karpathy, 2025), in heads of 64 features. The
    feed-forward networks are 8/3 as wide (Shazeer, 2020), rounded up to a multiple of 64.

    N counts the weights that a token is multiplied with: all but the embedding and the norms. The
    run has 20 tokens for each (Hoffmann et al., 2022), so it computes C = 6 N * 20 N FLOPs. The
    global batch has 0.2920 C^0.3271 tokens, and the peak learning rate is 0.3118 C^-0.1250
    (DeepSeek LLM, Bi et al., 2024, fitted from 1e17 to 2e19 FLOPs). The warm-up has as many tokens
    as N (Porian et al., 2024), which is one step in twenty.

    Args:
        depth: Number of layers.
        vocab_size: Rows of the embedding and of the head. The default is enough for bytes.
        sequence_length: Tokens of a training sequence, and positions of the model.
    """
    for name, size in (("depth", depth), ("sequence_length", sequence_length)):
        if size < 1:
            raise UsageError(f"{name}={size}: expected at least 1")
    dim = _HEAD_DIM * depth
    hidden_dim = -(-8 * dim // (3 * 64)) * 64
    n = depth * (4 * dim**2 + 3 * dim * hidden_dim) + dim * vocab_size
    tokens = 20 * n
    flops = 6 * n * tokens
    batch = _multiple(batch_tokens(flops) / sequence_length)
    model = llama3_model(
        dim=dim,
        n_layers=depth,
        n_heads=depth,
        n_kv_heads=depth,
        hidden_dim=hidden_dim,
        vocab_size=vocab_size,
        sequence_length=sequence_length,
    )
    steps = -(-tokens // (batch * sequence_length))
    return pretraining(
        model,
        lr=learning_rate(flops),
        global_batch_size=batch,
        local_batch_size=_BATCH,
        steps=steps,
        warmup_steps=-(-steps // 20),
        sequence_length=sequence_length,
    )


def batch_tokens(flops: float) -> float:
    """Return the tokens of the best batch for so much computation (Bi et al., 2024)."""
    return 0.2920 * flops**0.3271


def learning_rate(flops: float) -> float:
    """Return the best peak learning rate for so much computation (Bi et al., 2024)."""
    return round(0.3118 * flops**-0.1250, 6)


def _multiple(sequences: float) -> int:
    return max(round(sequences / _BATCH), 1) * _BATCH
