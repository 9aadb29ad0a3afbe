"""Every recipe: size, first loss, one RoPE table, one record."""

import math
import subprocess
import sys

import fiddle as fdl
import pytest
import torch

from nanigpt import tags
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.config.registry import recipes
from nanigpt.models.init import Constant
from tests.support import built_model, each_recipe, tiny

PARAMETERS = {
    "llama3_debug": 6_163_712,
    "llama3_1b": 1_235_814_400,
    "llama3_3b": 3_212_749_824,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama3_405b": 405_853_388_800,
    "llama3_8b_on_8": 8_030_261_248,
    "llama3_70b_on_256": 70_553_706_496,
    "llama3_405b_on_512": 405_853_388_800,
    "qwen3_debug": 6_426_240,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    # Qwen3's model cards: 30.5 B and 235 B. DeepSeek-V2 (2024), appendix B: Lite has 15.7 B;
    # DeepSeek-V3's report: 671 B. All digits are those of transformers, see
    # test_huggingface_families.py and test_expert_families.py.
    "qwen3_moe_debug": 11_291_136,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "llama4_debug": 8_329_472,
    "llama4_scout": 107_769_861_120,
    "llama4_maverick": 400_711_848_960,
    "gpt_oss_debug": 8_706_432,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "deepseek_v3_debug": 7_388_032,
    "deepseek_v3_16b": 15_706_484_224,
    "deepseek_v3_671b": 671_026_404_352,
    # 12 layers of width 768, and embedding and head of 512 rows.
    "dial": 85_740_288,
}


def test_each_recipe_has_a_published_size():
    assert set(recipes()) == set(PARAMETERS)


@pytest.mark.parametrize("name", each_recipe())
def test_parameter_count(name):
    model = build(compose([f"config:{name}"])).model
    assert model.n_parameters() == PARAMETERS[name]
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", each_recipe())
def test_first_loss_is_near_that_of_a_uniform_guess(name):
    cfg = tiny(recipe=name)
    vocab_size = cfg.model.embedding.vocab_size
    model = built_model(cfg)
    tokens = torch.randint(vocab_size, (16, 65), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(vocab_size) - 1) < 0.05


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.endswith("debug")])
def test_first_loss_of_the_debug_recipe_at_full_size(name):
    model = built_model(compose([f"config:{name}"]))
    tokens = torch.randint(256, (4, 129), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(2048) - 1) < 0.05


@pytest.mark.slow
def test_first_loss_of_llama3_1b_at_full_size():
    model = built_model(
        compose(["config:llama3_1b", "tag:ComputeDType=float32", "tag:SequenceLength=64"])
    )
    tokens = torch.randint(128_256, (2, 33), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() / math.log(128_256) - 1) < 0.05


@pytest.mark.parametrize("name", each_recipe())
def test_debug_scale_keeps_a_layer_of_each_kind(name, caplog):
    def kinds(cfg):
        return {
            (
                fdl.get_callable(layer.feed_forward),
                *(getattr(layer.attention, a) is None for a in told),
            )
            for layer in cfg.model.layers
        }

    told = ("rope", "window", "chunk")
    small = tiny(recipe=name)
    assert kinds(small) == kinds(compose([f"config:{name}"]))
    assert len(small.model.layers) == max(2, len(kinds(small)))
    assert not caplog.records  # of selections that found nothing


def test_debug_scale_leaves_groups_enough_experts():
    edit = "set:model.layers[3:].feed_forward.router.top_groups=1"
    cfg = compose(["config:deepseek_v3_671b", edit, "fiddler:debug_scale"])
    router = build(cfg.model).layers[1].feed_forward.router
    assert (router.n_experts, router.n_groups, router.top_k) == (128, 8, 8)


def test_405b_builds_on_meta_within_2_gb():
    """tools/bench/startup.py measures how long it takes."""
    code = """
from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
model = build(compose(["config:llama3_405b"])).model
# Not ru_maxrss, which a child inherits from the process that started it.
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) / 2**20, model.n_parameters())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    gib, parameters = map(float, done.stdout.split())
    assert parameters == PARAMETERS["llama3_405b"]
    assert gib < 2


def test_layers_are_distinct_nodes_and_rope_is_one():
    cfg = compose(["config:llama3_8b"])
    layers = cfg.model.layers
    assert len({id(layer.attention.wq) for layer in layers}) == 32
    assert len({id(layer.attention.wq.initializer) for layer in layers}) == 32
    assert len({id(layer.attention.rope) for layer in layers}) == 1


def test_one_tag_sets_the_sequence_length_of_data_and_model():
    cfg = compose(["config:llama3_debug"])
    fdl.set_tagged(cfg, tag=tags.SequenceLength, value=512)
    trainer = build(cfg)
    assert trainer.data.sequence_length == 512
    assert trainer.model.max_sequence_length == 512


def test_one_tag_sets_every_matrix_initialiser():
    cfg = tiny()
    fdl.set_tagged(cfg, tag=tags.Initializer, value=fdl.Config(Constant, value=0.5))
    for name, p in built_model(cfg).named_parameters():
        assert torch.all(p == (0.5 if p.ndim == 2 else 1.0)), name
