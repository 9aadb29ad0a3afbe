"""Each family against transformers: logits and gradients either way, and published sizes."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose
from nanigpt.errors import UsageError
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.reader import Pretrained
from nanigpt.models.huggingface.writer import save_pretrained
from nanigpt.models.init import initialize, materialize
from tests.models.huggingface import (
    CASES,
    FAMILIES,
    POSITIONS,
    VOCABULARY,
    gpt_oss_model,
    random_model,
    randomize,
)
from tests.models.test_qwen3 import PUBLISHED as PUBLISHED_QWEN3

LOGITS = {"llama": 1e-5, "qwen3": 1e-5}  # greatest difference
MIXTURE_LOGITS = 1e-4
GRADIENTS = 1e-4

# hidden_size, intermediate_size, layers, heads, KV heads, tied, factor of RoPE: config.json of
# meta-llama/Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B and Llama-3.1-405B.
PUBLISHED_LLAMA = {
    "llama3_1b": (2048, 8192, 16, 32, 8, True, 32.0),
    "llama3_3b": (3072, 8192, 28, 24, 8, True, 32.0),
    "llama3_8b": (4096, 14_336, 32, 32, 8, False, 8.0),
    "llama3_70b": (8192, 28_672, 80, 64, 8, False, 8.0),
    "llama3_405b": (16_384, 53_248, 126, 128, 8, False, 8.0),
}


def llama(hidden, intermediate, layers, heads, kv_heads, tied, factor):
    return {
        "model_type": "llama",
        "vocab_size": 128_256,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "factor": factor,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }


def qwen3(hidden, intermediate, layers, heads, tied):
    return {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "max_window_layers": layers,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": tied,
        "rope_theta": 1_000_000,
        "rope_scaling": None,
        "use_sliding_window": False,
        "sliding_window": None,
    }


# hidden_size, intermediate_size, moe_intermediate_size, layers, heads: config.json of
# Qwen/Qwen3-30B-A3B-Base and Qwen/Qwen3-235B-A22B.
PUBLISHED_QWEN3_MOE = {
    "qwen3_30b_a3b": (2048, 6144, 768, 48, 32),
    "qwen3_235b_a22b": (4096, 12_288, 1536, 94, 64),
}


def qwen3_moe(hidden, intermediate, moe_intermediate, layers, heads):
    return {
        **qwen3(hidden, intermediate, layers, heads, False),
        "model_type": "qwen3_moe",
        "num_key_value_heads": 4,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": moe_intermediate,
        "norm_topk_prob": True,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }


# config.json of deepseek-ai/DeepSeek-V3, and the sizes of deepseek-ai/DeepSeek-V2-Lite in that form.
PUBLISHED_DEEPSEEK = {
    "model_type": "deepseek_v3",
    "vocab_size": 129_280,
    "hidden_size": 7168,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "ep_size": 1,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "hidden_act": "silu",
    "max_position_embeddings": 163_840,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "rope_theta": 10_000,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
}
DEEPSEEK_LITE = {
    "vocab_size": 102_400,
    "hidden_size": 2048,
    "intermediate_size": 10_944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "routed_scaling_factor": 2.446,
    "q_lora_rank": None,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}

# DeepSeek stretched RoPE after pretraining, which is what the recipes are of.
STRETCHED = ["set:model.layers[*].attention.rope.scaling=@yarn(40, 4096, 1.0)"]
EDITS = {"deepseek_v3_16b": STRETCHED, "deepseek_v3_671b": STRETCHED}
PUBLISHED = {
    **{name: llama(*sizes) for name, sizes in PUBLISHED_LLAMA.items()},
    **{name: qwen3(*sizes) for name, sizes in PUBLISHED_QWEN3.items()},
    **{name: qwen3_moe(*sizes) for name, sizes in PUBLISHED_QWEN3_MOE.items()},
    "deepseek_v3_671b": PUBLISHED_DEEPSEEK,
    "deepseek_v3_16b": PUBLISHED_DEEPSEEK | DEEPSEEK_LITE,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_are_the_published_models(name):
    from transformers import AutoConfig, AutoModelForCausalLM

    model = build(compose([f"config:{name}", *EDITS.get(name, [])])).model
    family = FAMILIES[PUBLISHED[name]["model_type"]]
    assert family_of(model) is family
    assert not differences(family.fields(model), family.normalized(PUBLISHED[name]))
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**copy.deepcopy(PUBLISHED[name]))
        )
    assert model.n_parameters() == theirs.num_parameters()


def assert_equal_models(family, ours, theirs, folder):
    """Logits, and gradients of the loss; `folder` is for gradients under our names."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, 61), generator=generator)
    tokens, labels = tokens[:, :-1], tokens[:, 1:]
    theirs.eval()
    logits, expected = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(logits, expected, atol=LOGITS.get(family, MIXTURE_LOGITS), rtol=0)
    for found in (logits, expected):
        cross_entropy(found.flatten(0, 1), labels.flatten()).backward()
    for parameter in theirs.parameters():
        parameter.data = parameter.grad
    theirs.save_pretrained(folder)
    gradients = copy.deepcopy(ours)
    Pretrained(folder, gradients).load(gradients)
    wanted = dict(gradients.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], atol=GRADIENTS, rtol=0)
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("family, shape", CASES)
def test_transformers_computes_what_we_wrote(family, shape, tmp_path):
    from transformers import AutoModelForCausalLM

    model = random_model(family, shape)
    save_pretrained(model, tmp_path / "out", end_id=96)
    theirs, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not any(told.values()), told
    assert type(theirs).__name__ == FAMILIES[family].architecture
    assert theirs.dtype == torch.float32
    assert theirs.generation_config.eos_token_id == theirs.config.bos_token_id == 96
    assert_equal_models(family, model, theirs, tmp_path / "gradients")


@pytest.mark.parametrize("family, shape", CASES)
def test_we_compute_what_transformers_wrote(family, shape, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    ours = random_model(family, shape, seed=2)
    described = AutoConfig.for_model(family, **FAMILIES[family].fields(ours))
    torch.manual_seed(3)
    theirs = randomize(AutoModelForCausalLM.from_config(described), seed=3)
    theirs.save_pretrained(tmp_path / "in", max_shard_size="20KB")
    assert len(list((tmp_path / "in").glob("*.safetensors"))) > 1
    Pretrained(tmp_path / "in", ours).load(ours)
    assert_equal_models(family, ours, theirs, tmp_path / "gradients")


def test_a_text_model_is_read_from_one_that_also_sees(tmp_path):
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    ours = random_model("llama4_text", "maverick", seed=4)
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    vision |= {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
    described = Llama4Config(
        text_config=FAMILIES["llama4_text"].fields(ours) | {"pad_token_id": 0},
        vision_config=vision,
    )
    torch.manual_seed(5)
    theirs = randomize(Llama4ForConditionalGeneration(described), seed=5).eval()
    theirs.save_pretrained(tmp_path / "in")
    Pretrained(tmp_path / "in", ours).load(ours)
    tokens = torch.randint(1, VOCABULARY, (2, 60), generator=torch.Generator().manual_seed(0))
    expected = theirs.language_model(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, atol=MIXTURE_LOGITS, rtol=0)
    file = tmp_path / "in" / "model.safetensors"
    save_file(load_file(file) | {"language_model.more": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=r"1 problem:\n  - unexpected more \[2\]"):
        Pretrained(tmp_path / "in", ours)


def test_experts_in_mxfp4_are_read(tmp_path):
    """As GPT-OSS is published."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    cfg = gpt_oss_model(
        dim=64,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        hidden_dim=32,
        n_experts=3,
        top_k=2,
        vocab_size=VOCABULARY,
        sequence_length=POSITIONS,
        compute_dtype=torch.float32,
    )
    cfg.layers[0].attention.window = 16
    model = build(cfg)
    materialize(model, "cpu")
    initialize(model, seed=1)
    folder = tmp_path / "in"
    save_pretrained(randomize(model, seed=1), folder)
    file = folder / "model.safetensors"
    tensors, generator = load_file(file), torch.Generator().manual_seed(2)
    expected = {}
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, rows, columns = tensors.pop(name).shape
        size = (n_experts, columns, rows // 32, 16)
        blocks = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        scales = torch.randint(118, 126, size[:3], generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expected[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert expected[name].shape == (n_experts, rows, columns)
    save_file(tensors, file)
    told = folder / "config.json"
    quantized = json.loads(told.read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    told.write_text(json.dumps(quantized))
    Pretrained(folder, model).load(model)
    for i, layer in enumerate(model.layers):
        experts, stem = layer.feed_forward.experts, f"model.layers.{i}.mlp.experts"
        gate_up = expected[f"{stem}.gate_up_proj"].transpose(1, 2)
        assert torch.equal(experts.w1, gate_up[:, 0::2])
        assert torch.equal(experts.w3, gate_up[:, 1::2])
        assert torch.equal(experts.w2, expected[f"{stem}.down_proj"].transpose(1, 2))
    told.write_text(json.dumps(quantized | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(UsageError, match="quantization_config with quant_method='gptq': expected"):
        Pretrained(folder, model)
