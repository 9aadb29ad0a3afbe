"""DeepSeek-V3: the model as a DAG, and recipes at two sizes.

Sources: DeepSeek-V3 Technical Report (2024), sections 2.1 and 4.2 for latent attention, experts and
balancing, section 4.3 for YaRN; `config.json` of deepseek-ai/DeepSeek-V3 on the Hugging Face hub
for RoPE, norms and vocabulary. The smaller recipe has the sizes of deepseek-ai/DeepSeek-V2-Lite and
the router of V3. As in the reports, pretraining uses sequences of 4096 tokens and RoPE without
scaling. The published weights were extended afterwards; this sets their scaling:
`set:model.layers[*].attention.rope.scaling=@yarn(40, 4096, 1.0)`.
"""

from typing import Any

import fiddle as fdl
import torch

from nanigpt.config.registry import recipe
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.experiments.pretraining import debugging, pretraining
from nanigpt.experiments.sizes import sized
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.moe.mixture import MixtureOfExperts
from nanigpt.models.rope import RotaryEmbedding, YarnScaling
from nanigpt.training.trainer import Trainer

FAMILY = "DeepSeek-V3"


def deepseek_v3_model(
    *,
    dim: int,
    n_layers: int,
    n_dense_layers: int,
    n_heads: int,
    hidden_dim: int,
    expert_dim: int,
    n_experts: int,
    top_k: int,
    n_shared: int,
    n_groups: int = 1,
    top_groups: int = 1,
    scale: float = 2.5,
    q_lora_rank: int | None = 1536,
    kv_lora_rank: int = 512,
    nope_head_dim: int = 128,
    rope_head_dim: int = 64,
    v_head_dim: int = 128,
    vocab_size: int = 129_280,
    sequence_length: int = 4096,
    yarn_factor: float | None = None,
    original_max_positions: int = 4096,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> fdl.Config[Decoder]:
    """Return the decoder as a DAG of latent attention and mixtures of experts that a bias balances.

    `experiments/nodes.py` explains the initial weights.

    Args:
        dim: Width of the residual stream.
        n_layers: Number of layers.
        n_dense_layers: Number of first layers that have no mixture of experts.
        n_heads: Number of attention heads.
        hidden_dim: Width of the dense layers' feed-forward networks.
        expert_dim: Width of one expert.
        n_experts: Number of experts of each mixture.
        top_k: Number of a token's experts.
        n_shared: Width of the shared network, in multiples of `expert_dim`; 0 is no network.
        n_groups: Groups of experts.
        top_groups: Groups that a token may use.
        scale: Sum of the weights of a token's experts.
        q_lora_rank: Features of the latent of queries. None computes queries directly, as in
            DeepSeek-V2-Lite.
        kv_lora_rank: Features of the latent of keys and values.
        nope_head_dim: Features of a head's queries and keys that RoPE does not rotate.
        rope_head_dim: Features that it rotates.
        v_head_dim: Features of a head's values.
        vocab_size: Rows of the embedding.
        sequence_length: Positions of the model.
        yarn_factor: Factor by which RoPE extends `original_max_positions`; the published model
            has 40. None leaves RoPE unscaled.
        original_max_positions: Longest sequence of the original pretraining.
        compute_dtype: Dtype of activations.
    """
    if n_dense_layers < 0:
        raise UsageError(f"n_dense_layers={n_dense_layers}: expected at least 0")
    output_scale = nodes.residual_scale(n_layers)
    rope = fdl.Config(
        RotaryEmbedding, head_dim=rope_head_dim, max_sequence_length=sequence_length, theta=10_000.0
    )
    if yarn_factor is not None:
        rope.scaling = fdl.Config(
            YarnScaling,
            factor=yarn_factor,
            original_max_positions=original_max_positions,
            mscale_all_dim=1.0,
        )

    def norm() -> fdl.Config:
        return nodes.norm(dim, eps=1e-6)

    def dense() -> fdl.Config[FeedForward]:
        return nodes.feed_forward(dim=dim, hidden_dim=hidden_dim, output_scale=output_scale)

    def mixture() -> fdl.Config[MixtureOfExperts]:
        return nodes.mixture_of_experts(
            dim=dim,
            n_experts=n_experts,
            top_k=top_k,
            hidden_dim=expert_dim,
            shared_dim=n_shared * expert_dim or None,
            output_scale=output_scale,
            scores="sigmoid",
            normalize=True,
            scale=scale,
            n_groups=n_groups,
            top_groups=top_groups,
            balance_rate=0.001,
        )

    def block(i: int) -> fdl.Config[TransformerBlock]:
        return fdl.Config(
            TransformerBlock,
            attention_norm=norm(),
            attention=nodes.latent_attention(
                dim=dim,
                n_heads=n_heads,
                q_lora_rank=q_lora_rank,
                kv_lora_rank=kv_lora_rank,
                nope_head_dim=nope_head_dim,
                v_head_dim=v_head_dim,
                rope=rope,
                output_scale=output_scale,
            ),
            feed_forward_norm=norm(),
            feed_forward=dense() if i < n_dense_layers else mixture(),
        )

    return nodes.decoder(
        layers=[block(i) for i in range(n_layers)],
        norm=norm(),
        dim=dim,
        vocab_size=vocab_size,
        tied=False,
        compute_dtype=compute_dtype,
    )


@recipe
@sized(
    deepseek_v3_model,
    dim=256,
    n_layers=4,
    n_dense_layers=1,
    n_heads=8,
    hidden_dim=768,
    expert_dim=128,
    n_experts=16,
    top_k=4,
    n_shared=1,
    n_groups=4,
    top_groups=2,
    q_lora_rank=96,
    kv_lora_rank=64,
    nope_head_dim=32,
    rope_head_dim=16,
    v_head_dim=32,
    vocab_size=2048,
    compute_dtype=torch.float32,
)
def deepseek_v3_debug(sequence_length: int = 128, **sizes: Any) -> fdl.Config[Trainer]:
    """Train a small DeepSeek-V3 with every kind of layer on bytes, in minutes on two CPU cores."""
    model = deepseek_v3_model(**sizes, sequence_length=256)
    return debugging(model, steps=600, sequence_length=sequence_length)


@recipe
@sized(
    deepseek_v3_model,
    dim=2048,
    n_layers=27,
    n_dense_layers=1,
    n_heads=16,
    hidden_dim=10_944,
    expert_dim=1408,
    n_experts=64,
    top_k=6,
    n_shared=2,
    scale=2.446,
    q_lora_rank=None,
    vocab_size=102_400,
)
def deepseek_v3_16b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train DeepSeek-V3 at the sizes of V2-Lite, with 15.7 B parameters (2.7 B for each token).

    Learning rate and batch size are V2-Lite's (DeepSeek-V2, 2024, appendix B). The scale of the
    experts' weights is that of Moonlight (Liu et al., 2025), which has as many experts.
    """
    model = deepseek_v3_model(**sizes)
    return pretraining(
        model,
        lr=4.2e-4,
        global_batch_size=4608,
        local_batch_size=1,
        sequence_length=sequence_length,
    )


@recipe
@sized(
    deepseek_v3_model,
    dim=7168,
    n_layers=61,
    n_dense_layers=3,
    n_heads=128,
    hidden_dim=18_432,
    expert_dim=2048,
    n_experts=256,
    top_k=8,
    n_shared=1,
    n_groups=8,
    top_groups=4,
)
def deepseek_v3_671b(sequence_length: int = 4096, **sizes: Any) -> fdl.Config[Trainer]:
    """Train DeepSeek-V3, with 671 B parameters (37 B for each token)."""
    model = deepseek_v3_model(**sizes)
    return pretraining(
        model,
        lr=2.2e-4,
        global_batch_size=15_360,
        local_batch_size=1,
        sequence_length=sequence_length,
    )
