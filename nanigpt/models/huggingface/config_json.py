"""Read config.json: find the family of its model, and refuse fields that no module here carries."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.huggingface.families import FAMILIES
from nanigpt.models.huggingface.mapping import Family
from nanigpt.words import one_of

# Fields that do not change the model: versions and files, ids of tokens, caches, generation, the
# format of stored weights, the initial weights of transformers, and losses that it adds itself.
_IDLE = frozenset(
    [
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "ep_size",
        "for_llm_compressor",
        "id2label",
        "initial_context_length",
        "initializer_range",
        "label2id",
        "model_type",
        "name_or_path",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "quantization_config",
        "return_dict",
        "router_aux_loss_coef",
        "seq_aux",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ]
)

# Fields with which a model would compute something else, unless they have these values.
_NEUTRAL = {
    "add_cross_attention": False,
    "attention_dropout": 0,
    "is_decoder": False,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "router_jitter_noise": 0,
}

# What code raises that computes with values of wrong types, or with lists that are too short.
MISFITS = (AttributeError, LookupError, TypeError, ValueError, ZeroDivisionError)

# `completed` reads them under other names.
_READ = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")

_MOST_LAYERS = 10_000
_LEAST = dict.fromkeys(("vocab_size", "hidden_size", "num_hidden_layers"), 1)


class Fields(dict[str, Any]):
    """Fields of config.json. A missing one is the user's mistake."""

    def __missing__(self, name: str) -> Any:
        raise UsageError(f"it has no {name}")


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UsageError: There is no such file, or it holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} has no {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error})") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected an object")
    return found


def find_family(config: dict[str, Any]) -> tuple[Family, dict[str, Any]]:
    """Return the family of a config.json, and the part of it that describes the family's model.

    Raises:
        UsageError: No family has this `model_type`.
    """
    kind = config.get("model_type")
    for family in FAMILIES:
        if family.model_type == kind:
            return family, config
        if family.whole is not None and family.whole.model_type == kind:
            return family, part_of(config, family)
    known = one_of(repr(family.model_type) for family in FAMILIES)
    raise UsageError(f"model_type={kind!r}: expected {known}")


def part_of(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the part of a larger model's config.json that describes the family's model."""
    assert family.whole is not None
    part = config.get(family.whole.field) or {}
    if not isinstance(part, dict):
        raise UsageError(f"{family.whole.field}={part!r}: expected an object")
    return part


def normalized(config: dict[str, Any], family: Family) -> Fields:
    """Return config.json in the form of `Family.fields`, whatever types its values have.

    Raises:
        UsageError: The values describe no model.
    """
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:  # fields of single layers are listed
        raise UsageError(f"num_hidden_layers={layers}: expected at most {_MOST_LAYERS:,}")
    try:
        return Fields(family.normalized(config))
    except MISFITS as error:
        raise no_model(config, family, error) from error


def no_model(config: dict[str, Any], family: Family, error: Exception) -> UsageError:
    """Return what to raise where values of config.json do not fit together.

    Args:
        config: The content of config.json.
        family: Its family.
        error: What the values led to. It is told where all of them have the type of a default.
    """
    defaults = family.normalized(dict(_LEAST))
    odd = [
        f"{name}={value!r}: expected {type(defaults[name]).__name__}"
        for name, value in config.items()
        if value is not None and _is_odd(value, defaults.get(name))
    ]
    why = "; ".join(odd) or f"{type(error).__name__}: {error}"
    return UsageError(f"it describes no model of {family.model_type} ({why})")


def _is_odd(value: Any, default: Any) -> bool:
    """Return whether a field has another type than its default, which is None if unknown."""
    if type(default) is float:
        return type(value) not in (int, float)
    return default is not None and type(value) is not type(default)


def uncarried(
    config: dict[str, Any], family: Family, described: Fields, stated: Iterable[str]
) -> Iterator[str]:
    """Yield a message for each field that neither describes the model nor may be ignored.

    Args:
        config: The content of config.json, as it was written.
        family: Its family.
        described: The same content, `normalized`.
        stated: Names of the fields that describe the model built from it.
    """
    known = {*stated, *family.normalized(dict(_LEAST)), *_READ, *_IDLE}
    for name, value in config.items():
        if value is None or name in known:
            continue
        other = family.second_names.get(name)
        if other is not None:
            if described[other] != value:
                yield f"{name}={value!r}: expected {other}={described[other]!r}, its other name"
        elif name not in _NEUTRAL:
            yield f"{name}={value!r}: {family.model_type} has no such field in nanigpt"
        elif value != _NEUTRAL[name]:
            yield f"{name}={value!r}: expected {_NEUTRAL[name]!r}"
