"""Every part that ships is a component; the list says where it fits, and there it does."""

import importlib
import inspect
import pkgutil

import fiddle as fdl
import pytest
import torch
from torch import nn

import nanigpt.models
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import components
from nanigpt.config.values import made_by_components
from nanigpt.config.view.listing import listing
from nanigpt.config.view.slots import slots
from tests.support import built_model

# A place of each component in the debug recipe, which the listing names, and its arguments.
DENSE = {
    "optimizer": ["adamw", "muon"],
    "schedule": ["cosine", "linear(5)", "warmup_stable_decay"],
    "task": ["language_modeling"],
    "task.loss": ["cross_entropy(1e-4)", "linear_cross_entropy"],
    "task.sampler": ["sampler(prompt='def ')"],
    "data": ["packed_dataset(sequence_length=128)"],
    "data.corpus": ["text_corpus"],
    "data.tokenizer": ["byte_tokenizer", "huggingface_tokenizer(tokenizer.json)"],
    "loader": ["loader(prefetch=2)"],
    "evaluations['val']": ["evaluation(interval=50)"],
    "trackers[*]": ["console", "json_lines", "tensorboard", "wandb(project=mine)"],
    "metrics": ["metrics(log_interval=5)"],
    "checkpointer": ["checkpointer(keep=1)"],
    "garbage_collection": ["garbage_collection(interval=7)"],
    "profiling": ["profiling"],
    "profiling.phases": ["phase_timers"],
    "profiling.trace": ["trace"],
    "profiling.memory": ["memory_snapshot"],
    "parallelizer.mesh": ["mesh"],
    "parallelizer.pipeline": ["pipeline_parallel"],
    "parallelizer.fsdp": ["fully_sharded_data_parallel"],
    "parallelizer.context": ["context_parallel(ring)"],
    "parallelizer.tensor": ["tensor_parallel"],
    "parallelizer.expert": ["expert_parallel"],
    "parallelizer.float8": ["float8"],
    "parallelizer.recomputation": ["recomputation(budget=0.3)"],
    "parallelizer.compile": ["compile"],
    "model.embedding": ["embedding(2048, 256)"],
    "model.embedding.initializer": ["truncated_normal(0.1)", "fan_in_normal", "constant(0.0)"],
    "model.positions": ["learned_positions(256, 256)"],
    "model.norm": ["rms_norm(256)", "layer_norm(256)"],
    "model.head": ["head(256, 2048, soft_cap=30)", "projection(256, 2048)"],
    "model.layers[*]": ["transformer_block(256, 8, 300, 256)", "parallel_block(256, 8, 300)"],
    "model.layers[*].dropout": ["dropout(0.1)"],
    "model.layers[*].attention": [
        "attention(256, 8, 4, positions=256, window=16)",
        "latent_attention(256, 8, 256, kv_lora_rank=64)",
    ],
    "model.layers[*].attention.wq": ["projection(256, 256)"],
    "model.layers[*].attention.rope": ["rotary_embedding(16, 256, theta=1e4)"],
    "model.layers[*].attention.rope.scaling": ["yarn(2, 128)", "llama3_scaling"],
    "model.layers[*].attention.sink": ["attention_sink(16)"],
    "model.layers[*].attention.temperature": ["attention_temperature"],
    "model.layers[*].attention.core": [
        *("scaled_dot_product", "flex_attention", "varlen_attention", "eager_attention"),
    ],
    "model.layers[*].feed_forward": [
        *("feed_forward(256, 100)", "mlp(256, 100, bias=True)"),
        "mixture_of_experts(256, 100, n_experts=4, top_k=2)",
    ],
    "model.layers[*].feed_forward.activation": [
        *("silu", "gelu(tanh)", "relu_squared", "swiglu", "clamped_swiglu"),
    ],
}
MIXTURE = {
    "model.layers[*].feed_forward.router": ["router(256, 16, 4)"],
    "model.layers[*].feed_forward.experts": ["experts(16, 256, 192)"],
}
UNLISTED = {"projection(256, 2048)"}  # a head without a cap, whose name is not a projection's

INNER = {
    "Block": "abstract",
    "SelfAttention": "abstract",
    "DecoderCosts": "abstract",
    "Decoder": "a recipe makes whole models",
    "TiedHead": "it holds the decoder's own embedding, which no command line can refer to",
    "MultiTokenPrediction": "fiddler:multi_token copies the model's own layers",
    "PredictionDepth": "a part of MultiTokenPrediction",
}


@pytest.mark.parametrize(
    ("recipe", "table"), [("llama3_debug", DENSE), ("qwen3_moe_debug", MIXTURE)]
)
def test_components_fit_where_the_list_says(recipe, table):
    places = slots(compose([f"config:{recipe}"]))
    for path, calls in table.items():
        for call in calls:
            cfg = compose([f"config:{recipe}", f"set:{path}=@{call}"])
            name = call.partition("(")[0]
            assert call in UNLISTED or path in places[name], call
            if path.startswith("model."):
                build(cfg.model)


def test_no_component_is_missing_from_the_tables():
    tried = {c.partition("(")[0] for t in (DENSE, MIXTURE) for calls in t.values() for c in calls}
    assert tried == {name for name, f in components().items() if f.__module__.startswith("nanigpt")}


def test_every_module_that_a_slot_can_take_is_made_by_a_component():
    public = set()
    for module in pkgutil.walk_packages(nanigpt.models.__path__, "nanigpt.models."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, nn.Module) and kind.__module__ == module.name and name[0] != "_":
                public.add(kind)
    made = {made for _, (_, made) in made_by_components()}
    assert {kind.__name__ for kind in public - made} == set(INNER)


def test_the_list_says_where_components_fit():
    lines = listing(compose(["config:llama3_debug"])).splitlines()
    [at] = [i for i, line in enumerate(lines) if line.startswith("  rotary_embedding(")]
    assert lines[at + 2].strip() == "fits model.layers[*].attention.rope"
    assert not [line for line in lines if line.strip().startswith("Width")]


def test_two_positions_of_one_signature_are_told_apart_by_their_types():
    """A schedule, an initializer and an activation are each called with two arguments."""
    places = slots(compose(["config:llama3_debug"]))
    assert places["cosine"] == ["schedule"]
    assert "schedule" not in places["constant"]
    assert places["silu"] == ["model.layers[*].feed_forward.activation"]


def test_layers_get_thetas_of_their_own():
    rope = "@rotary_embedding(head_dim=16, max_sequence_length=256, theta={})"
    cfg = compose(
        [
            "config:llama3_debug",
            *(f"set:model.layers[{i}].attention.rope={rope.format(10**i)}" for i in (3, 5)),
        ]
    )
    thetas = [layer.attention.rope.theta for layer in cfg.model.layers]
    assert thetas == [5e5, 5e5, 5e5, 1e3, 5e5, 1e5]
    model = built_model(cfg)
    tables = [layer.attention.rope.cos_sin_2MF for layer in model.layers]
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[0], tables[3])


def test_each_layer_of_a_range_has_its_own_part():
    cfg = compose(["config:llama3_debug", "set:model.layers[2:4].attention=@attention(256, 8)"])
    two, three = (cfg.model.layers[i].attention for i in (2, 3))
    assert two is not three and two.wq.initializer is not three.wq.initializer
    assert fdl.get_callable(cfg.model.layers[4].attention) is fdl.get_callable(two)
    build(cfg).check(1, "cpu")
