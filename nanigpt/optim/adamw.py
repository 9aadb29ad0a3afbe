"""AdamW with weight decay on matrices only, and its state in float32 or in fewer bits."""

from typing import Annotated, Any, Literal, get_args

import torch

from nanigpt import tags
from nanigpt.logs import import_torchao
from nanigpt.optim.groups import NamedParameters, ParameterGroup, parameter_groups
from nanigpt.optim.upstream import without_dynamo
from nanigpt.problems import (
    ComponentError,
    Fix,
    Problem,
    refuse,
    require_choice,
    require_not_negative,
    require_positive,
)
from nanigpt.pure import pure

State = Literal["float32", "bfloat16", "8bit"]
Kernel = Literal["fused", "foreach"]


@pure
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
    """Make AdamW (Loshchilov and Hutter, 2019), which decays only matrices.

    Args:
        named_parameters: Names and parameters of a model.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices.
        betas: Decay rates of the two moments.
        eps: Term added to the root of the second moment.
        groups: Parameters with values of their own.
        state: Format of both moments. `bfloat16` halves their memory, and `8bit` quarters it
            (Dettmers et al., 2022; needs torchao). Updates are computed in float32.
        kernel: PyTorch's implementation for state in float32. `fused` makes the whole update at
            once, on a CPU too. `foreach` goes through the parameters once for each operation.

    Raises:
        ComponentError: An argument is out of range, or torchao is not installed.
    """
    require_not_negative(lr=lr, weight_decay=weight_decay)
    require_positive(eps=eps)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        refuse("betas", betas, "two numbers from 0 to below 1")
    require_choice(get_args(State), state=state)
    require_choice(get_args(Kernel), kernel=kernel)
    if kernel != "fused" and state != "float32":
        expected = f"'fused' with state={state!r}, which does not use PyTorch's kernels"
        refuse("kernel", kernel, expected, Fix(None, "kernel", "fused"), given=("state",))
    if state == "bfloat16" and max(betas) > 0.99:
        refuse(
            "betas",
            betas,
            "at most 0.99 with state='bfloat16', whose 8 bits would lose smaller steps",
            Fix(None, "state", "8bit"),
            given=("state",),
        )
    every = parameter_groups(named_parameters, weight_decay, groups)
    if state == "float32":
        kind = without_dynamo(torch.optim.AdamW)
        chosen: dict[str, Any] = {kernel: True}
        return kind(every, lr=lr, betas=betas, eps=eps, **chosen)
    if state == "bfloat16":
        from nanigpt.optim.bfloat16 import BFloat16AdamW

        return without_dynamo(BFloat16AdamW)(every, lr=lr, betas=betas, eps=eps)
    try:
        import_torchao()
        from nanigpt.optim.eight_bit import EightBitAdamW
    except ImportError as error:
        expected = f"another state, because torchao cannot be imported ({error})"
        advice = "pip install 'nanigpt[float8]', or state='bfloat16'"
        raise ComponentError(Problem("state", state, expected, advice)) from error
    return without_dynamo(EightBitAdamW)(every, lr=lr, betas=betas, eps=eps)
