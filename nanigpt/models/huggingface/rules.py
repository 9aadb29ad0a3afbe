"""Rules that several families share: most name their tensors as Llama does."""

from nanigpt.models.huggingface.mapping import RotaryPairs, Rule

LAYER, THEIR_LAYER = "layers.{i}", "model.layers.{i}"

FRAME = (
    Rule("embedding.weight", "model.embed_tokens.weight"),
    Rule(f"{LAYER}.attention_norm.weight", f"{THEIR_LAYER}.input_layernorm.weight"),
    Rule(f"{LAYER}.feed_forward_norm.weight", f"{THEIR_LAYER}.post_attention_layernorm.weight"),
    Rule("norm.weight", "model.norm.weight"),
    Rule("head.weight", "lm_head.weight"),
)

HEAD_NORMS = tuple(
    Rule(f"{LAYER}.attention.{name}.weight", f"{THEIR_LAYER}.self_attn.{name}.weight")
    for name in ("q_norm", "k_norm")
)

# Each expert has tensors of its own.
EXPERTS = (
    Rule(f"{LAYER}.feed_forward.router.weight", f"{THEIR_LAYER}.mlp.gate.weight"),
    *(
        Rule(f"{LAYER}.feed_forward.experts.{a}", f"{THEIR_LAYER}.mlp.experts.{{e}}.{b}.weight")
        for a, b in {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.items()
    ),
)


def attention(*, rotary: RotaryPairs | None = None) -> tuple[Rule, ...]:
    """Return rules for the projections of `Attention`, with biases or without."""
    names = {"wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "o_proj"}
    return tuple(
        Rule(
            f"{LAYER}.attention.{ours}.{{p}}",
            f"{THEIR_LAYER}.self_attn.{theirs}.{{p}}",
            rotary=rotary if ours in ("wq", "wk") else None,
        )
        for ours, theirs in names.items()
    )


def feed_forward(
    theirs: str = "mlp", *, ours: str = "feed_forward", part: str = "weight"
) -> tuple[Rule, ...]:
    """Return rules for the projections of a `FeedForward`.

    Args:
        theirs: Their name of the module.
        ours: Our name of the module.
        part: Last part of the names; `{p}` matches weights and biases.
    """
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    return tuple(
        Rule(f"{LAYER}.{ours}.{a}.{part}", f"{THEIR_LAYER}.{theirs}.{b}.{part}")
        for a, b in names.items()
    )
