"""What families share between config.json and our modules."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from nanigpt.errors import UsageError
from nanigpt.models.rope import Llama3Scaling, RotaryEmbedding

T = TypeVar("T")

_UNCOMPARED = {"max_position_embeddings"}  # a run may use fewer positions, or more


def alike(what: str, values: Iterable[T]) -> T:
    """The one value that all layers have.

    Raises:
        UsageError: they differ.
    """
    found = list(values)
    if any(value != found[0] for value in found):
        distinct = list(dict.fromkeys(map(str, found)))
        raise UsageError(f"layers differ in {what} ({', '.join(distinct[:4])}): expected one value")
    return found[0]


def rope_fields(rope: RotaryEmbedding) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the names that every version of transformers reads.

    Raises:
        UsageError: there is no name for such a scaling.
    """
    scaling = rope.scaling
    if scaling is None:
        told = None
    elif type(scaling) is Llama3Scaling:
        told = {
            "rope_type": "llama3",
            "factor": float(scaling.factor),
            "low_freq_factor": float(scaling.low_freq_factor),
            "high_freq_factor": float(scaling.high_freq_factor),
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    else:
        raise UsageError(
            f"rope.scaling is {type(scaling).__name__}: expected Llama3Scaling or None"
        )
    return {"rope_theta": float(rope.theta), "rope_scaling": told}


def normalized(config: dict[str, Any], absent: Callable[[dict], dict]) -> dict[str, Any]:
    """A config.json under the names that we write, whichever version wrote it."""
    fields = {**absent(config), **{k: v for k, v in config.items() if v is not None}}
    rope = dict(fields.pop("rope_parameters", None) or fields.get("rope_scaling") or {})
    fields["rope_theta"] = rope.pop("rope_theta", fields.get("rope_theta"))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    fields["rope_scaling"] = None if kind == "default" else {"rope_type": kind, **rope}
    return fields


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields that would make another model of the same weights."""
    return [
        f"config.json has {name}={theirs.get(name)!r}, the model {value!r}"
        for name, value in ours.items()
        if name not in _UNCOMPARED and not _equal(value, theirs.get(name))
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-6)  # 1e-05 went through other programs' floats
    return a == b
