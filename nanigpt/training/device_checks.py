"""Check for things that a kind of device cannot do."""

import torch
from torch import nn

from nanigpt.models.attention_core import FlexAttention
from nanigpt.models.protocol import compute_dtype
from nanigpt.models.varlen_attention import VarLen
from nanigpt.parallel.parallelizer import Parallelizer
from nanigpt.problems import Fix, Problem, show


def device_problems(
    model: nn.Module, parallelizer: Parallelizer, kind: str | None
) -> list[Problem]:
    """Return the reasons why a device of this kind cannot train `model`.

    Args:
        model: The model.
        parallelizer: The run's parallelizer.
        kind: `cpu` or `cuda`; None returns only the reasons that hold for both.
    """
    computed = compute_dtype(model)
    attentions = [module for module in model.modules() if hasattr(module, "core")]
    found: list[Problem] = [
        Problem("core", type(attention.core), expected, Fix(attention, "core", None), attention)
        for attention in attentions
        if (expected := _core_problem(attention.core, computed, kind)) is not None
    ]
    tensor = parallelizer.tensor
    if kind == "cpu" and tensor.asynchronous and parallelizer.mesh.axes["tp"] != 1:
        expected = "False on a CPU, which has no symmetric memory"
        fix = Fix(tensor, "asynchronous", False)
        found.append(Problem("asynchronous", True, expected, fix, tensor))
    found += parallelizer.float8.device_problems(model, kind)
    if kind == "cuda" and parallelizer.context.method == "ring" and computed == torch.float32:
        expected = "another method on CUDA, where ring attention does not support float32"
        context = parallelizer.context
        fix = Fix(context, "method", "all_gather")
        found.append(Problem("method", "ring", expected, fix, context))
    return found


def _core_problem(core: object, computed: torch.dtype, kind: str | None) -> str | None:
    """Return the end of "expected ..." for a core that does not fit, or None."""
    if kind != "cpu" and isinstance(core, VarLen) and computed not in VarLen.dtypes:
        return (
            f"another core, because VarLen's kernel computes in bfloat16, not in {show(computed)}"
        )
    if kind == "cpu":
        if isinstance(core, FlexAttention):
            return "another core on a CPU, where FlexAttention has no backward pass"
        if isinstance(core, VarLen):
            return "another core on a CPU, because VarLen's kernel needs a CUDA device"
        kernels = getattr(core, "kernels", None)
        if kernels is not None and not {"flash", "math"} & set(kernels):
            return f"'flash' or 'math' among kernels={kernels} on a CPU"
    return None
