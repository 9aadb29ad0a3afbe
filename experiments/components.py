"""Components that a command line can set: `set:schedule=@linear(warmup_steps=100)`."""

from collections.abc import Sequence

import fiddle as fdl

from nanigpt.config.registry import component
from nanigpt.data.tokenizer import ByteTokenizer, HuggingFaceTokenizer
from nanigpt.models.activation import GELU, Approximation, ClampedSwiGLU, ReLUSquared, SiLU
from nanigpt.models.attention_core import Eager, FlexAttention, Kernel, ScaledDotProduct
from nanigpt.models.dropout import Dropout
from nanigpt.models.rope import YarnScaling
from nanigpt.models.varlen_attention import VarLen
from nanigpt.optim.adamw import adamw as make_adamw
from nanigpt.optim.muon import muon as make_muon
from nanigpt.optim.schedule import Cosine, Linear, WarmupStableDecay
from nanigpt.parallel.compile import Compile, Scope
from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy


@component
def adamw(lr: float = 3e-4, weight_decay: float = 0.1) -> fdl.Partial:
    """Use AdamW, which decays only matrices."""
    return fdl.Partial(make_adamw, lr=lr, weight_decay=weight_decay)


@component
def muon(lr: float = 3e-4, weight_decay: float = 0.1) -> fdl.Partial:
    """Use Muon for matrices and AdamW for the rest, with one learning rate."""
    others = fdl.Partial(make_adamw, lr=lr, weight_decay=weight_decay)
    return fdl.Partial(make_muon, lr=lr, weight_decay=weight_decay, others=others)


@component
def cosine(warmup_steps: int = 0, final: float = 0.1) -> fdl.Config[Cosine]:
    """Warm up, then decay along half a cosine wave."""
    return fdl.Config(Cosine, warmup_steps=warmup_steps, final=final)


@component
def linear(warmup_steps: int = 0, final: float = 0.0) -> fdl.Config[Linear]:
    """Warm up, then decay along a straight line."""
    return fdl.Config(Linear, warmup_steps=warmup_steps, final=final)


@component
def warmup_stable_decay(
    warmup_steps: int = 0, final: float = 0.0, decay_fraction: float = 0.2
) -> fdl.Config[WarmupStableDecay]:
    """Warm up, stay at the peak, then decay along a straight line at the end."""
    return fdl.Config(
        WarmupStableDecay, warmup_steps=warmup_steps, final=final, decay_fraction=decay_fraction
    )


@component
def silu() -> fdl.Config[SiLU]:
    """Use SiLU as the activation of an MLP, or SwiGLU in a gated network."""
    return fdl.Config(SiLU)


@component
def gelu(approximate: Approximation = "none") -> fdl.Config[GELU]:
    """Use GELU as the activation of an MLP, or GeGLU in a gated network."""
    return fdl.Config(GELU, approximate=approximate)


@component
def relu_squared() -> fdl.Config[ReLUSquared]:
    """Use the square of ReLU as the activation of an MLP, or as the gate in a gated network."""
    return fdl.Config(ReLUSquared)


@component
def clamped_swiglu(alpha: float = 1.702, limit: float = 7.0) -> fdl.Config[ClampedSwiGLU]:
    """Use GPT-OSS's activation, in experts or in another gated network."""
    return fdl.Config(ClampedSwiGLU, alpha=alpha, limit=limit)


@component
def dropout(p: float) -> fdl.Config[Dropout]:
    """Drop features that a layer adds to the residual stream: `set:model.layers[*].dropout=...`."""
    return fdl.Config(Dropout, p=p)


@component
def scaled_dot_product(kernels: Sequence[Kernel] | None = None) -> fdl.Config[ScaledDotProduct]:
    """Use PyTorch's fused attention, with the first of the given kernels that can compute it."""
    return fdl.Config(ScaledDotProduct, kernels=kernels)


@component
def flex_attention() -> fdl.Config[FlexAttention]:
    """Use FlexAttention, which skips blocks that document masks and causality hide."""
    return fdl.Config(FlexAttention)


@component
def varlen_attention() -> fdl.Config[VarLen]:
    """Use FlashAttention of packed documents without a mask, on CUDA and in bfloat16."""
    return fdl.Config(VarLen)


@component
def eager_attention() -> fdl.Config[Eager]:
    """Use attention that computes all scores in float32, as a reference."""
    return fdl.Config(Eager)


@component
def yarn(
    factor: float, original_max_positions: int, mscale_all_dim: float = 0.0
) -> fdl.Config[YarnScaling]:
    """Extend RoPE to sequences that are `factor` times as long."""
    return fdl.Config(
        YarnScaling,
        factor=factor,
        original_max_positions=original_max_positions,
        mscale_all_dim=mscale_all_dim,
    )


@component
def compile(
    backend: str = "inductor", fullgraph: bool = True, scope: Scope = "blocks", loss: bool = True
) -> fdl.Config[Compile]:
    """Compile the model, block by block or as a whole, and the loss."""
    return fdl.Config(Compile, backend=backend, fullgraph=fullgraph, scope=scope, loss=loss)


@component
def cross_entropy(z_loss: float = 0.0) -> fdl.Config[CrossEntropy]:
    """Compute the cross-entropy of all logits at once."""
    return fdl.Config(CrossEntropy, z_loss=z_loss)


@component
def linear_cross_entropy(
    chunk_size: int = 1024, z_loss: float = 0.0
) -> fdl.Config[LinearCrossEntropy]:
    """Compute logits and their cross-entropy for one chunk of tokens at a time."""
    return fdl.Config(LinearCrossEntropy, chunk_size=chunk_size, z_loss=z_loss)


@component
def byte_tokenizer() -> fdl.Config[ByteTokenizer]:
    """Use bytes as token ids."""
    return fdl.Config(ByteTokenizer)


@component
def huggingface_tokenizer(path: str) -> fdl.Config[HuggingFaceTokenizer]:
    """Use a Hugging Face tokenizer.json."""
    return fdl.Config(HuggingFaceTokenizer, path=path)
