"""Muon: momentum with orthogonalized matrices, also if ranks hold parts of them.

Shapes: K matrices, M rows, N columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, get_args

import torch
from torch.distributed.tensor import DTensor

from nanigpt import tags
from nanigpt.optim.batched import BatchedOptimizer, Parameters, gradients, local
from nanigpt.optim.groups import (
    NamedParameters,
    ParameterGroup,
    kind,
    parameter_groups,
    selects,
)
from nanigpt.optim.upstream import without_dynamo
from nanigpt.optim.whole_matrices import on_whole_matrices
from nanigpt.problems import (
    Fix,
    on_behalf_of,
    refuse,
    require_choice,
    require_not_negative,
    require_positive,
)
from nanigpt.pure import pure

AdjustLR = Literal["match_rms_adamw", "original"]


@pure
def muon(
    named_parameters: NamedParameters,
    *,
    others: Callable[..., torch.optim.Optimizer],
    lr: Annotated[float, tags.MuonLearningRate] = 3e-4,
    weight_decay: Annotated[float, tags.WeightDecay] = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    adjust_lr: AdjustLR = "match_rms_adamw",
    dtype: Annotated[torch.dtype, tags.ComputeDType] = torch.bfloat16,
    select: str | tuple[str, ...] = "matrices",
    groups: tuple[ParameterGroup, ...] = (),
) -> "Muon":
    """Make Muon (Jordan et al., 2024) for some matrices, and `others` for all other parameters.

    Args:
        named_parameters: Names and parameters of a model.
        others: Function that makes the optimizer of the other parameters; in a DAG it is an
            `fdl.Partial` of AdamW.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        momentum: Decay rate of the momentum.
        nesterov: Whether to use Nesterov's momentum.
        ns_steps: Number of Newton-Schulz iterations.
        ns_coefficients: Coefficients of their polynomial.
        eps: Smallest norm by which a matrix is divided.
        adjust_lr: Factor of `lr`. `match_rms_adamw` is 0.2 sqrt(max(M, N)), which makes updates as
            large as AdamW's, so that `lr` may be AdamW's (Liu et al., 2025). `original` is
            sqrt(max(1, M / N)), for learning rates of about 0.02.
        dtype: Dtype of the products in the iterations.
        select: Selectors of Muon's matrices.
        groups: Matrices of Muon with values of their own. `others` may have the same groups; each
            optimizer takes the parameters that belong to it.

    Raises:
        ComponentError: An argument is out of range, or `select` selects a parameter that is no
            matrix.
    """
    require_not_negative(lr=lr, weight_decay=weight_decay)
    require_positive(eps=eps)
    if ns_steps < 1:
        refuse("ns_steps", ns_steps, "at least 1")
    if not 0 <= momentum < 1:
        refuse("momentum", momentum, "a number from 0 to below 1")
    require_choice(get_args(AdjustLR), adjust_lr=adjust_lr)
    mine: list[tuple[str, torch.nn.Parameter]] = []
    rest: list[tuple[str, torch.nn.Parameter]] = []
    for name, parameter in named_parameters:
        chosen = selects(select, name, parameter)
        if chosen and (kind(name, parameter) == "vectors" or parameter.ndim > 3):
            refuse(
                "select",
                select,
                "selectors of matrices and stacks of them, but it selects "
                f"{name}, of shape {list(parameter.shape)}",
                Fix(None, "select", "matrices"),
            )
        (mine if chosen else rest).append((name, parameter))
    every = parameter_groups(mine, weight_decay, groups, metric="lr_muon")
    if not any(parameter.requires_grad for _, parameter in mine):
        every[0]["unmatched"] = f"select={select!r}"
    with on_behalf_of(others):
        other = others(rest)
    for group in other.param_groups:
        if "unmatched" in group:
            group["unmatched"] = f"others.{group['unmatched']}"
    return without_dynamo(Muon)(
        every,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        ns_steps=ns_steps,
        ns_coefficients=ns_coefficients,
        eps=eps,
        adjust_lr=adjust_lr,
        dtype=dtype,
        others=other,
    )


class Muon(BatchedOptimizer):
    """Muon for its own groups, which come first, joined with another optimizer for other groups.

    `torch.optim.Muon` computes the same for whole matrices, but takes no stacks. It is also right
    for shards, with 11 to 16 collectives for each matrix (torch 2.13). Here ranks divide the
    matrices among them, with two collectives for each mesh axis and as many matrices as ranks.

    Args:
        params: Muon's own groups.
        lr: Learning rate.
        momentum: Decay rate of the momentum.
        nesterov: Whether to use Nesterov's momentum.
        ns_steps: Number of Newton-Schulz iterations.
        ns_coefficients: Coefficients of their polynomial.
        eps: Smallest norm by which a matrix is divided.
        adjust_lr: Factor of the learning rate.
        dtype: Dtype of the products in the iterations.
        others: The other optimizer. It shares state and groups with this one, which steps it.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        ns_coefficients: tuple[float, float, float],
        eps: float,
        adjust_lr: AdjustLR,
        dtype: torch.dtype,
        others: torch.optim.Optimizer,
    ):
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0}
        iteration = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "eps": eps}
        super().__init__(params, {**defaults, **iteration, "adjust_lr": adjust_lr, "dtype": dtype})
        self.others = others
        self._n_own = len(self.param_groups)
        self.param_groups += others.param_groups
        self._share()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both optimizers."""
        super().load_state_dict(state_dict)  # replaces state and groups by new objects
        self._share()

    def _share(self) -> None:
        self.others.param_groups = self.param_groups[self._n_own :]
        self.others.state = self.state

    def _update_groups(self, groups: list[dict[str, Any]]) -> None:
        super()._update_groups(groups[: self._n_own])
        self.others.step()

    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        """Divide matrices into batches as large as the mesh, so that each rank has a whole one.

        A stack of matrices is a batch of its own, and so is every matrix in a single process.
        """
        same: dict[Any, Parameters] = {}  # by shape and placements
        for p in parameters:
            same.setdefault((p.shape, getattr(p, "placements", None)), []).append(p)
        for of_one_shape in same.values():
            first: torch.Tensor = of_one_shape[0]
            size = 1
            if isinstance(first, DTensor) and first.ndim == 2:
                size = first.device_mesh.size()
            for start in range(0, len(of_one_shape), size):
                yield of_one_shape[start : start + size]

    def _update(self, batch: Parameters, group: dict[str, Any]) -> None:
        for parameter in batch:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = local([self.state[p]["momentum_buffer"] for p in batch])
        grads = gradients(batch)
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates: Sequence[torch.Tensor] = buffers
        if group["nesterov"]:
            updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        updates = orthogonal_updates(
            [update.to(group["dtype"]) for update in updates],
            batch[0],
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        weights = local(batch)
        rows, columns = batch[0].shape[-2:]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        scale = (
            math.sqrt(max(1, rows / columns))
            if group["adjust_lr"] == "original"
            else 0.2 * math.sqrt(max(rows, columns))
        )
        for weight, update in zip(weights, updates, strict=True):
            weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal_updates(
    updates: list[torch.Tensor], like: torch.Tensor, **iteration: Any
) -> list[torch.Tensor]:
    """Return this rank's part of updates, with each matrix orthogonalized.

    Args:
        updates: Local tensors of matrices with equal shapes and placements, or of one stack.
        like: One of the parameters.
        **iteration: Arguments of `orthogonalize`.
    """
    if not isinstance(like, DTensor):
        return [orthogonalize(update, **iteration) for update in updates]
    stack_KMN = torch.stack(updates) if like.ndim == 2 else updates[0]
    done_KMN = on_whole_matrices(lambda x: orthogonalize(x, **iteration), stack_KMN, like)
    return list(done_KMN.unbind()) if like.ndim == 2 else [done_KMN]


def orthogonalize(
    matrices: torch.Tensor, *, steps: int, coefficients: tuple[float, float, float], eps: float
) -> torch.Tensor:
    """Return approximately the nearest orthogonal matrix, for one matrix or each of a stack.

    The Newton-Schulz iteration with a polynomial of degree 5 (Jordan et al., 2024) moves singular
    values close to 1. In bfloat16 it equals the one of torch.optim.Muon, which has no other dtype
    and no stacks.

    Args:
        matrices: [..., M, N].
        steps: Number of iterations.
        coefficients: Coefficients of the polynomial.
        eps: Smallest norm by which a matrix is divided.
    """
    a, b, c = coefficients
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # so that the square is the smaller one
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    add_product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for _ in range(steps):
        square = x @ x.mT
        x = add_product(x, add_product(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
