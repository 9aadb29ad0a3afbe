"""Sizes by recipe argument and by fiddler: clean, of the right size and scale, and the same."""

import math
from pathlib import Path

import fiddle as fdl
import pytest
import torch

from nanigpt import tags
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.overrides import tagged
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.errors import UsageError
from tests.support import built_model, each_recipe

# Of each family: its debug recipe and arguments that change every size.
ATTENTION = {"dim": 96, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
COMMON = {**ATTENTION, "hidden_dim": 80, "vocab_size": 300, "sequence_length": 64}
LATENT = {k: v for k, v in COMMON.items() if k not in ("n_kv_heads", "head_dim")}
FAMILIES = {
    "llama3_debug": COMMON,
    "qwen3_debug": COMMON,
    "qwen3_moe_debug": COMMON | {"n_experts": 6, "top_k": 2},
    "llama4_debug": COMMON | {"n_experts": 6, "dense_hidden_dim": 112},
    "gpt_oss_debug": COMMON | {"n_experts": 6, "top_k": 2},
    "deepseek_v3_debug": LATENT | {"n_experts": 8, "top_k": 3, "expert_dim": 48},
}


def sized(recipe, **sizes):
    given = ", ".join(f"{k}={v}" for k, v in sizes.items())
    return compose([f"config:{recipe}({given})"])


def residual_scales(cfg):
    return {getattr(p.node, p.argument) for p in tagged(cfg.model, tags.ResidualScale)}


def n_parameters(recipe, *, dim, n_layers, n_heads, hidden_dim, vocab_size, **sizes):
    """The formula, written down once more and apart from the modules."""
    experts, top = sizes.get("n_experts", 0), 1 if recipe == "qwen3_debug" else 2
    total = top * vocab_size * dim + dim  # embedding, head unless tied, last norm
    for i in range(n_layers):
        total += 2 * dim
        if recipe == "deepseek_v3_debug":
            q, kv, nope, rope, v = 96, 64, 32, 16, 32  # ranks and head dims of the recipe
            total += dim * q + q + q * n_heads * (nope + rope)
            total += dim * (kv + rope) + kv + kv * n_heads * (nope + v) + n_heads * v * dim
        else:
            heads, kv_heads = n_heads * sizes["head_dim"], sizes["n_kv_heads"] * sizes["head_dim"]
            total += 2 * dim * heads + 2 * dim * kv_heads
        if recipe.startswith("qwen3"):
            total += 2 * sizes["head_dim"]
        if recipe == "gpt_oss_debug":  # biases of projections, router and experts, and sinks
            total += heads + 2 * kv_heads + dim + n_heads
            total += experts + experts * (2 * hidden_dim + dim)
        if recipe in ("llama3_debug", "qwen3_debug"):
            total += 3 * dim * hidden_dim
        elif recipe == "llama4_debug" and i % 2 == 0:
            total += 3 * dim * sizes["dense_hidden_dim"]
        elif recipe == "deepseek_v3_debug" and i == 0:
            total += 3 * dim * hidden_dim
        elif recipe == "deepseek_v3_debug":
            total += experts * dim + 3 * dim * sizes["expert_dim"] * (experts + 1)
        else:
            shared = 1 if recipe == "llama4_debug" else 0
            total += experts * dim + 3 * dim * hidden_dim * (experts + shared)
    return total


@pytest.mark.parametrize("recipe", FAMILIES)
def test_every_size_of_every_family(recipe):
    sizes = FAMILIES[recipe]
    cfg = sized(recipe, **sizes)
    trainer = build(cfg)
    trainer.check(1, "cpu")
    assert trainer.model.n_parameters() == n_parameters(recipe, **sizes)
    assert (trainer.model.dim, trainer.model.vocab_size) == (96, 300)
    assert len(trainer.model.layers) == 5
    assert trainer.data.sequence_length == 64

    scales = residual_scales(cfg)
    assert scales == {1 / math.sqrt(10)}

    model = built_model(cfg)
    tokens = torch.randint(300, (8, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(300) - 1) < 0.05


@pytest.mark.parametrize("recipe", FAMILIES)
@pytest.mark.parametrize("size", ["dim", "n_layers", "n_heads", "hidden_dim", "vocab_size"])
def test_one_size_alone_is_enough(recipe, size):
    value = {"dim": 512, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "vocab_size": 512}[size]
    build(sized(recipe, **{size: value})).check(1, "cpu")


def test_kv_heads_keep_the_number_of_heads_that_share_one():
    cfg = sized("llama3_8b", n_heads=16)
    assert cfg.model.layers[0].attention.n_kv_heads == 4
    assert sized("llama3_debug", n_heads=8).model.layers[0].attention.n_kv_heads == 8
    with pytest.raises(UsageError, match="n_heads=6: expected a multiple of 4, since 4 heads"):
        sized("llama3_8b", n_heads=6)
    assert sized("llama3_8b", n_heads=6, n_kv_heads=2, head_dim=128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("llama3_debug(dim=0)", "dim=0: expected at least 1"),
        ("llama3_8b(n_heads=0)", "n_heads=0: expected at least 1"),
        ("llama3_debug(dim=100)", "dim=100: expected a multiple of n_heads=16, or head_dim too"),
        ("llama3_debug(n_heads=0, n_kv_heads=1)", "n_heads=0: expected at least 1"),
        ("llama3_debug(n_layers=0)", "n_layers=0: expected 1 to 10,000"),
        ("llama3_debug(n_layers=1000000000)", "n_layers=1000000000: expected 1 to 10,000"),
        ("llama3_debug(dim=wide)", "dim=wide: expected int"),
        ("llama3_debug(width=4)", "unexpected keyword argument 'width'"),
        ("gpt_oss_debug(sequence_length=512)", "512 positions: expected at most 256, since YaRN"),
        ("llama4_debug(mixture_interval=0)", "mixture_interval=0: expected at least 1"),
        ("deepseek_v3_debug(n_dense_layers=-1)", "n_dense_layers=-1: expected at least 0"),
    ],
)
def test_wrong_sizes_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        compose([f"config:{call}"])


@pytest.mark.parametrize(
    "call", ["llama3_debug(tied=true)", "qwen3_debug(tied=false)", "deepseek_v3_debug(n_shared=0)"]
)
def test_parts_that_a_recipe_has_may_be_left_out(call):
    build(compose([f"config:{call}"])).check(1, "cpu")


# The depth of the dial changes all of its numbers.
SIZED = [case for case in each_recipe() if case.values != ("dial",)]


@pytest.mark.parametrize("recipe", SIZED)
def test_a_fiddler_gives_what_the_argument_gives(recipe):
    longest = build(compose([f"config:{recipe}"]).model).max_sequence_length
    n_layers = len(compose([f"config:{recipe}"]).model.layers)
    fiddlers = [
        ("depth", "n_layers", 3),
        ("depth", "n_layers", n_layers + 5),
        ("vocabulary", "vocab_size", 50304),
        ("context", "sequence_length", 64),
    ]
    if not recipe.startswith("gpt_oss"):  # its YaRN ends at the model's positions
        fiddlers.append(("context", "sequence_length", 2 * longest))
    for fiddler, argument, n in fiddlers:
        edited = compose([f"config:{recipe}", f"fiddler:{fiddler}({n})"])
        assert fingerprint(edited) == fingerprint(sized(recipe, **{argument: n})), fiddler


@pytest.mark.parametrize("recipe", FAMILIES)
def test_configs_after_fiddlers_are_clean_and_train(recipe):
    edits = ("fiddler:depth(6)", "fiddler:vocabulary(1000)", "fiddler:context(200)")
    trainer = build(compose([f"config:{recipe}", *edits]))
    trainer.check(1, "cpu")
    assert (len(trainer.model.layers), trainer.model.vocab_size) == (6, 1000)


def test_depth_goes_on_with_a_pattern_or_says_that_there_is_none():
    def kinds(cfg):
        return [fdl.get_callable(layer.feed_forward).__name__[0] for layer in cfg.model.layers]

    deepseek = "config:deepseek_v3_671b"
    assert kinds(compose([deepseek, "fiddler:depth(5)"])) == ["F", "F", "F", "M", "M"]
    for cut in (["fiddler:depth(4)"], ["fiddler:depth(4)", "fiddler:depth(4)"]):
        with pytest.raises(UsageError, match=r"4 layers of 2 kinds show no pattern .*repeat=1"):
            compose([deepseek, *cut, "fiddler:depth(8)"])
    told = compose([deepseek, "fiddler:depth(4)", "fiddler:depth(7, repeat=1)"])
    assert kinds(told) == ["F", "F", "F", "M", "M", "M", "M"]


def test_further_layers_are_nodes_of_their_own_with_the_shared_rope():
    layers = compose(["config:llama3_debug", "fiddler:depth(20)"]).model.layers
    assert len({id(layer.attention.wq.initializer) for layer in layers}) == 20
    assert len({id(layer.attention.rope) for layer in layers}) == 1


def test_depth_scales_what_the_initial_weights_were_scaled_with():
    cfg = sized("llama3_debug", init_scale=0.3)
    assert fingerprint(compose(["fiddler:depth(11)"], cfg)) == fingerprint(
        sized("llama3_debug", init_scale=0.3, n_layers=11)
    )


def test_fiddlers_of_sizes_raise_where_they_do_not_fit():
    cfg = compose(["config:llama3_debug"])
    for place in tagged(cfg, tags.ResidualScale):
        fdl.remove_tag(place.node, place.argument, tags.ResidualScale)
    with pytest.raises(UsageError, match="no initial weight of the model has the tag Residual"):
        compose(["fiddler:depth(3)"], cfg)
    for wrong in ("depth(0)", "depth(9, repeat=7)", "vocabulary(0)", "context(0)"):
        with pytest.raises(UsageError, match="expected"):
            compose(["config:llama3_debug", f"fiddler:{wrong}"])


@pytest.mark.parametrize("recipe", each_recipe())
def test_debug_scale_scales_residuals_for_the_layers_that_it_leaves(recipe):
    cfg = compose([f"config:{recipe}", "fiddler:debug_scale"])
    scales = residual_scales(cfg)
    assert scales == {1 / math.sqrt(2 * len(cfg.model.layers))}


def test_no_tag_sets_all_widths():
    with pytest.raises(UsageError, match=r"never have one value; use the arguments of a recipe"):
        compose(["config:llama3_debug", "tag:Width=300"])
    with pytest.raises(UsageError, match="known: (?!.*Width)"):
        compose(["config:llama3_debug", "tag:Breadth=300"])


@pytest.mark.parametrize("run", ["llama3", "deepseek_v3", "gpt_oss"])
def test_depth_changes_a_record_from_before_the_tag(run):
    path = Path(__file__).parents[1] / "fixtures" / "runs" / run / "config.json"
    assert "ResidualScale" not in path.read_text()
    cfg = compose([f"config_file:{path}", "fiddler:depth(1)"])
    scales = residual_scales(cfg)
    assert scales == {1 / math.sqrt(2)}


def test_an_initializer_that_layers_share_is_scaled_once():
    cfg = compose(["config:llama3_debug"])
    for layer in cfg.model.layers:
        layer.attention.wo.initializer = cfg.model.layers[0].attention.wo.initializer
    assert residual_scales(compose(["fiddler:depth(2)"], cfg)) == {0.5}
