"""Conversion between config.json and our modules, in parts that families share.

A family's `fields` combines these parts. Each takes modules and returns the fields that describe
them, or raises UsageError when no config.json can describe them.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any, TypeVar

from nanigpt.errors import UsageError
from nanigpt.models.activation import SwiGLU
from nanigpt.models.attention import Attention
from nanigpt.models.block import TransformerBlock
from nanigpt.models.decoder import Decoder
from nanigpt.models.embedding import TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.norm import RMSNorm
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding, YarnScaling
from nanigpt.models.self_attention import SelfAttention
from nanigpt.words import listed

T = TypeVar("T")

# A run may use fewer positions, or more. layer_types repeats max_window_layers. Layers that predict
# further tokens are not part of the model.
_UNCOMPARED = {"max_position_embeddings", "max_window_layers", "num_nextn_predict_layers"}

# Every model here has these values, so they are not written.
_ALWAYS = {"partial_rotary_factor": 1.0}


def common(what: str, values: Iterable[T]) -> T:
    """Return the one value that all layers have.

    Raises:
        UsageError: Layers have different values.
    """
    found = list(values)
    if any(value != found[0] for value in found):
        distinct = list(dict.fromkeys(map(str, found)))
        raise UsageError(f"layers differ in {what} ({listed(distinct, 4)}): expected one value")
    return found[0]


def attentions(
    model: Decoder, *, has: Collection[str] = (), may_have: Collection[str] = ()
) -> list[Attention]:
    """Return the attention of each layer.

    Args:
        model: Its layers must all have an `Attention`.
        has: Optional arguments of `Attention` that every layer must have. RoPE is one of them,
            unless it is in `may_have`.
        may_have: Optional arguments that a layer may have. All others must be None.

    Raises:
        UsageError: A layer has something else.
    """
    found = of_kind(Attention, (block.attention for block in model.layers))
    has = {*has, *({"rope"} - set(may_have))}
    for i, attention in enumerate(found):
        optional = {
            "rope": attention.rope,
            "q_norm": attention.q_norm,
            "k_norm": attention.k_norm,
            "window": attention.visibility.window,
            "chunk": attention.visibility.chunk,
            "sink": attention.sink,
            "temperature": attention.temperature,
            "score_soft_cap": attention.score_soft_cap,
        }
        for name, value in optional.items():
            where = f"layers[{i}].attention.{name}"
            if value is None and name in has:
                raise UsageError(f"{where} is None: expected one")
            if value is not None and name not in {*has, *may_have}:
                shown = value if isinstance(value, int | float) else type(value).__name__
                raise UsageError(f"{where} is {shown}: expected None")
    return found


def feed_forwards(modules: Iterable[Any]) -> list[FeedForward]:
    """Return the modules, or raise UsageError if one is not a `FeedForward` with SwiGLU."""
    found = of_kind(FeedForward, modules)
    of_kind(SwiGLU, (module.activation for module in found))
    return found


def head_norms(attentions: Iterable[Attention]) -> list[RMSNorm]:
    """Return the norms of queries and keys, from all layers that have them."""
    norms = [norm for layer in attentions for norm in (layer.q_norm, layer.k_norm)]
    return of_kind(RMSNorm, (norm for norm in norms if norm is not None))


def of_kind(kind: type[T], modules: Iterable[Any]) -> list[T]:
    """Return the modules, or raise UsageError if one has another class."""
    found = list(modules)
    others = sorted({_class(module).__name__ for module in found if _class(module) is not kind})
    if others:
        raise UsageError(f"layers have {', '.join(others)}: expected {kind.__name__}")
    return found


def _class(module: object) -> type:
    """Return the class of a module; FSDP has replaced it with a subclass."""
    from torch.distributed.fsdp import FSDPModule  # takes a second; recipes import this file

    cls = type(module)
    return cls.__bases__[1] if issubclass(cls, FSDPModule) else cls


def decoder_fields(model: Decoder, *, norms: Iterable[RMSNorm] = ()) -> dict[str, Any]:
    """Return the fields of the model as a whole, and the one eps of all norms.

    Args:
        model: The decoder.
        norms: Norms besides those of the decoder and its blocks.
    """
    blocks = of_kind(TransformerBlock, model.layers)
    found = of_kind(
        RMSNorm, [model.norm, *(n for b in blocks for n in (b.attention_norm, b.feed_forward_norm))]
    )
    check_gains(found)
    absent = {"positions": model.positions, "head.soft_cap": getattr(model.head, "soft_cap", None)}
    for i, block in enumerate(blocks):
        for name in ("post_attention_norm", "post_feed_forward_norm"):
            absent[f"layers[{i}].{name}"] = getattr(block, name)
    for name, value in absent.items():
        if value is not None:
            raise UsageError(f"{name} is {value}: expected None")
    found += norms
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.embedding.dim,
        "num_hidden_layers": len(model.layers),
        "max_position_embeddings": model.max_sequence_length,
        "rms_norm_eps": common("norm.eps", [norm.eps for norm in found]),
        "tie_word_embeddings": isinstance(model.head, TiedHead),
    }


def check_gains(norms: Iterable[RMSNorm]) -> None:
    """Raise UsageError if a norm has no gain."""
    if any(norm.weight is None for norm in norms):
        raise UsageError("a norm has no gain: expected one")


def attention_fields(attentions: Sequence[Attention]) -> dict[str, Any]:
    """Return the fields for numbers and sizes of heads."""
    projections = [w for a in attentions for w in (a.wq, a.wk, a.wv, a.wo)]
    return {
        "num_attention_heads": common("attention.n_heads", [a.n_heads for a in attentions]),
        "num_key_value_heads": common("attention.n_kv_heads", [a.n_kv_heads for a in attentions]),
        "head_dim": common("attention.head_dim", [a.head_dim for a in attentions]),
        "attention_bias": common("attention biases", [w.bias is not None for w in projections]),
    }


def feed_forward_fields(mlps: Sequence[FeedForward]) -> dict[str, Any]:
    """Return the fields for the width and the activation of dense networks."""
    sizes = [mlp.w1.out_dim for mlp in mlps]
    return {"intermediate_size": common("feed_forward.w1.out_dim", sizes), "hidden_act": "silu"}


def rope_fields(attentions: Sequence[SelfAttention], *, scores: bool = False) -> dict[str, Any]:
    """Return `rope_theta` and `rope_scaling`, which every version of transformers reads.

    Args:
        attentions: All layers; some may have no RoPE.
        scores: Whether YaRN may scale attention scores, too.

    Raises:
        UsageError: transformers has no name for the scaling.
    """
    found = [attention.rope for attention in attentions if attention.rope is not None]
    ropes = of_kind(RotaryEmbedding, found)
    return common("attention.rope", [_rope(rope, scores) for rope in ropes])


def _rope(rope: RotaryEmbedding, scores: bool) -> dict[str, Any]:
    scaling = rope.scaling
    described: dict[str, Any] | None
    if scaling is None:
        described = None
    elif type(scaling) is Llama3Scaling:
        described = {
            "rope_type": "llama3",
            "factor": float(scaling.factor),
            "low_freq_factor": float(scaling.low_freq_factor),
            "high_freq_factor": float(scaling.high_freq_factor),
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    elif type(scaling) is YarnScaling:
        if scaling.score_factor != 1.0 and not scores:
            raise UsageError(f"rope.scaling.mscale_all_dim is {scaling.mscale_all_dim}: expected 0")
        described = {
            "rope_type": "yarn",
            "factor": float(scaling.factor),
            "beta_fast": float(scaling.beta_fast),
            "beta_slow": float(scaling.beta_slow),
            "attention_factor": float(scaling.attention_factor),
            "truncate": scaling.truncate,
            "original_max_position_embeddings": scaling.original_max_positions,
            **({"mscale_all_dim": float(scaling.mscale_all_dim)} if scores else {}),
        }
    else:
        raise UsageError(
            f"rope.scaling is {type(scaling).__name__}: expected Llama3Scaling, YarnScaling or None"
        )
    return {"rope_theta": float(rope.theta), "rope_scaling": described}


def window_fields(windows: Sequence[int | None]) -> dict[str, Any]:
    """Return the fields for sliding windows, as old and new versions of transformers name them."""
    sizes = [window for window in windows if window is not None]
    kinds = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {
        "use_sliding_window": bool(sizes),
        "sliding_window": common("attention.window", sizes) if sizes else None,
        "max_window_layers": next((i for i, w in enumerate(windows) if w is not None), len(kinds)),
        "layer_types": kinds,
    }


def completed(config: dict[str, Any], *, scores: bool = False, **defaults: Any) -> dict[str, Any]:
    """Return a config.json under the names that we write, whichever version wrote it.

    Fields of RoPE that nanigpt does not know stay in `rope_scaling`, so that `differences` reports
    them.

    Args:
        config: The content of config.json.
        scores: Whether YaRN's `mscale_all_dim` scales scores besides changing `attention_factor`.
        **defaults: Values of fields that the file may leave out, or set to null.
    """
    fields = {**_ALWAYS, **defaults, **_given(config)}
    rope = _given(fields.pop("rope_parameters", None) or fields.get("rope_scaling") or {})
    for name in ("rope_theta", *_ALWAYS):
        fields[name] = rope.pop(name, fields.get(name))
    kind = rope.pop("type", None)
    kind = rope.pop("rope_type", kind)
    if kind == "yarn":
        scaled = {"mscale_all_dim": rope.get("mscale_all_dim") or 0.0} if scores else {}
        rope = {**_yarn(rope, fields.get("max_position_embeddings")), **scaled}
    scaling = rope if kind is None else {"rope_type": kind, **rope}
    fields["rope_scaling"] = None if scaling in ({}, {"rope_type": "default"}) else scaling
    return fields


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _yarn(rope: dict[str, Any], positions: int | None) -> dict[str, Any]:
    """Return YaRN's fields with the defaults of those that the file leaves out."""
    given = dict(rope)
    factor = given.get("factor", 1.0)

    def attention_factor(mscale: float = 1.0) -> float:
        return 1.0 + 0.1 * mscale * math.log(factor) if factor > 1 else 1.0

    mscale, mscale_all_dim = given.pop("mscale", None), given.pop("mscale_all_dim", None)
    default = attention_factor()
    if mscale and mscale_all_dim:
        default = attention_factor(mscale) / attention_factor(mscale_all_dim)
    return {
        "original_max_position_embeddings": positions,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": default,
        "truncate": True,
        **given,
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """List the fields that would make the same weights another model."""
    return [
        f"config.json has {name}={theirs.get(name)!r}, expected {value!r}"
        for name, value in {**ours, **_ALWAYS}.items()
        if name not in _UNCOMPARED and not _equal(value, theirs.get(name))
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)  # 1e-05 went through other programs' floats
    return a == b
