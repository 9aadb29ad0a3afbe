"""AdamW with weight decay on matrices only, its state in float32 or in fewer bits."""

from typing import Annotated, Literal, get_args

import torch

from nanigpt import tags
from nanigpt.errors import UsageError
from nanigpt.logs import import_torchao
from nanigpt.optim.groups import NamedParameters, ParameterGroup, parameter_groups
from nanigpt.optim.upstream import without_dynamo

State = Literal["float32", "bfloat16", "8bit"]
Kernel = Literal["fused", "foreach"]


def adamw(
    named_parameters: NamedParameters,
    *,
    lr: Annotated[float, tags.LearningRate] = 3e-4,
    weight_decay: Annotated[float, tags.WeightDecay] = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    groups: tuple[ParameterGroup, ...] = (),
    state: State = "float32",
    kernel: Kernel = "fused",
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) on matrices; all else is not decayed.

    Args:
        groups: parameters with values of their own.
        state: of both moments. `bfloat16` halves their memory, `8bit` quarters it (Dettmers et al.,
            2022; needs torchao). Updates are computed in float32.
        kernel: of upstream, where the state is float32: `fused` does all of the update at once, on
            a CPU too; `foreach` goes through the parameters once for each operation.

    Raises:
        UsageError: an argument is out of range, or torchao is not installed.
    """
    require_not_negative(lr=lr, weight_decay=weight_decay, eps=eps)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UsageError(f"optimizer.betas={betas}: expected two numbers from 0 to below 1")
    if state not in get_args(State):
        choices = ", ".join(get_args(State))
        raise UsageError(f"optimizer.state={state!r}: expected one of {choices}")
    if kernel not in get_args(Kernel):
        choices = ", ".join(get_args(Kernel))
        raise UsageError(f"optimizer.kernel={kernel!r}: expected one of {choices}")
    if kernel != "fused" and state != "float32":
        raise UsageError(
            f"optimizer.kernel={kernel!r}: expected 'fused' with state={state!r}, which has an "
            "update of its own"
        )
    if state == "bfloat16" and max(betas) > 0.99:
        raise UsageError(
            f"optimizer.betas={betas}: expected at most 0.99 with state='bfloat16', whose 8 bits "
            "would lose smaller steps; take lower betas, or state='8bit'"
        )
    every = parameter_groups(named_parameters, weight_decay, groups)
    if state == "float32":
        kind = without_dynamo(torch.optim.AdamW)
        chosen = {kernel: True}
        return kind(every, lr=lr, betas=betas, eps=eps, **chosen)
    if state == "bfloat16":
        from nanigpt.optim.bfloat16 import BFloat16AdamW as LowPrecisionAdamW
    else:
        try:
            import_torchao()
            from nanigpt.optim.eight_bit import EightBitAdamW as LowPrecisionAdamW
        except ImportError as error:
            raise UsageError(
                f"optimizer.state='8bit' needs torchao ({error}); install it by "
                "pip install 'nanigpt[float8]', or take state='bfloat16'"
            ) from error
    return without_dynamo(LowPrecisionAdamW)(every, lr=lr, betas=betas, eps=eps)


def require_not_negative(**values: float) -> None:
    """Checks arguments of an optimizer.

    Raises:
        UsageError: one is below 0, or no number.
    """
    for name, value in values.items():
        if not value >= 0:
            raise UsageError(f"optimizer.{name}={value}: expected 0 or more")
