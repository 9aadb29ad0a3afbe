"""Published sizes of Llama models, as arguments of `llama3_model`.

Sources: The Llama 3 Herd of Models (2024), table 3; the model cards of Llama 3.2; Llama 2 (2023),
appendix A.2.1. `debugmodel` is torchtitan's.
"""

from typing import Any

_8B = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 14_336}
_70B = {"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "hidden_dim": 28_672}
_405B = {"dim": 16_384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 8, "hidden_dim": 53_248}
_1B = {"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "hidden_dim": 8192}
_3B = {"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "hidden_dim": 8192}
_DEBUG = {"dim": 256, "n_layers": 6, "n_heads": 16, "n_kv_heads": 16, "hidden_dim": 768}
_LLAMA2_7B = {"dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "hidden_dim": 11_008}
_LLAMA2_13B = {"dim": 5120, "n_layers": 40, "n_heads": 40, "n_kv_heads": 40, "hidden_dim": 13_824}

_LLAMA3 = {"vocab_size": 128_256}
_LLAMA2 = {"vocab_size": 32_000}
_OLD = 4096  # positions of Llama 2

TORCHTITAN: dict[str, dict[str, Any]] = {
    name: {**sizes, "vocab_size": 128_256, "rope_scaling_factor": 8.0}
    for name, sizes in {"8B": _8B, "70B": _70B, "405B": _405B}.items()
} | {"debugmodel": {**_DEBUG, "vocab_size": 2048, "rope_scaling_factor": 8.0}}
"""Sizes by `model.flavor`."""

TORCHTUNE: dict[str, dict[str, Any]] = {
    "llama3.llama3_8b": {**_8B, **_LLAMA3},
    "llama3.llama3_70b": {**_70B, **_LLAMA3},
    "llama3_1.llama3_1_8b": {**_8B, **_LLAMA3, "rope_scaling_factor": 8.0},
    "llama3_1.llama3_1_70b": {**_70B, **_LLAMA3, "rope_scaling_factor": 8.0},
    "llama3_1.llama3_1_405b": {**_405B, **_LLAMA3, "rope_scaling_factor": 8.0},
    "llama3_2.llama3_2_1b": {**_1B, **_LLAMA3, "rope_scaling_factor": 32.0, "tied": True},
    "llama3_2.llama3_2_3b": {**_3B, **_LLAMA3, "rope_scaling_factor": 32.0, "tied": True},
    "llama3_3.llama3_3_70b": {**_70B, **_LLAMA3, "rope_scaling_factor": 8.0},
    "llama2.llama2_7b": {**_LLAMA2_7B, **_LLAMA2},
    "llama2.llama2_13b": {**_LLAMA2_13B, **_LLAMA2},
    "llama2.llama2_70b": {**_70B, **_LLAMA2},
}
"""Sizes by the last two parts of `model._component_`."""

# The longest sequences that a model was made for, and RoPE's theta, where they are not Llama 3.1's.
LONGEST = {"llama3": 8192, "llama2": _OLD}
THETA = {"llama2": 10_000.0}
