"""Muon: momentum whose matrices are made orthogonal, also where ranks have parts of them.

Shapes: K matrices, M rows, N columns.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

import torch

from nanigpt import tags
from nanigpt.optim.batched import BatchedOptimizer, Parameters, local
from nanigpt.optim.groups import (
    NamedParameters,
    ParameterGroup,
    kind,
    parameter_groups,
    selects,
)
from nanigpt.optim.upstream import without_dynamo
from nanigpt.optim.whole_matrices import on_whole_matrices
from nanigpt.problems import Fix, on_behalf_of, refuse, require_choice, require_not_negative

AdjustLR = Literal["match_rms_adamw", "original"]


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
    """Muon (Jordan et al., 2024) for some matrices, and `others` for all other parameters.

    Args:
        others: makes the optimizer of the other parameters; in a DAG an `fdl.Partial` of AdamW.
        ns_steps: iterations of Newton and Schulz.
        ns_coefficients: of their polynomial.
        adjust_lr: what `lr` is multiplied with. `match_rms_adamw` is 0.2 sqrt(max(M, N)), with
            which updates are as large as AdamW's and `lr` may be AdamW's (Liu et al., 2025);
            `original` is sqrt(max(1, M / N)), for learning rates of about 0.02.
        dtype: of the iterations' products.
        select: selectors of Muon's matrices.
        groups: of Muon's matrices, those with values of their own. `others` may have the same
            ones, of which each takes what is its own.

    Raises:
        ComponentError: an argument is out of range, or `select` selects what is no matrix.
    """
    require_not_negative(lr=lr, weight_decay=weight_decay, eps=eps)
    if ns_steps < 1:
        refuse("ns_steps", ns_steps, "at least 1")
    if not 0 <= momentum < 1:
        refuse("momentum", momentum, "a number from 0 to below 1")
    require_choice(get_args(AdjustLR), adjust_lr=adjust_lr)
    mine, rest = [], []
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
    """Muon for its own groups, which come first, and another optimizer for its groups, as one.

    `torch.optim.Muon` computes the same of whole matrices, and takes no stacks. Of shards it is
    right too, with 11 to 16 collectives for each matrix (torch 2.13); here ranks divide the
    matrices among them, with two collectives for each mesh axis and as many matrices as ranks.

    Args:
        others: shares state and groups with this one, and is stepped by it.
    """

    def __init__(
        self,
        params: list[dict],
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
        super().load_state_dict(state_dict)  # which makes state and groups anew
        self._share()

    def _share(self) -> None:
        self.others.param_groups = self.param_groups[self._n_own :]
        self.others.state = self.state

    def _update_groups(self, groups: list[dict]) -> None:
        super()._update_groups(groups[: self._n_own])
        self.others.step()

    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        """Matrices that are exchanged together: as many as ranks, so that each has a whole one.

        Stacks of matrices, and what is in one process, are by themselves.
        """
        alike: dict[Any, Parameters] = {}
        for p in parameters:
            alike.setdefault((p.shape, getattr(p, "placements", None)), []).append(p)
        for of_one_shape in alike.values():
            first = of_one_shape[0]
            size = (
                first.device_mesh.size() if hasattr(first, "placements") and first.ndim == 2 else 1
            )
            for start in range(0, len(of_one_shape), size):
                yield of_one_shape[start : start + size]

    def _update(self, parameters: Parameters, group: dict) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = local([self.state[p]["momentum_buffer"] for p in parameters])
        gradients = local([p.grad for p in parameters])
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        updates = buffers
        if group["nesterov"]:
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = orthogonal_updates(
            [update.to(group["dtype"]) for update in updates],
            parameters[0],
            steps=group["ns_steps"],
            coefficients=group["ns_coefficients"],
            eps=group["eps"],
        )
        weights = local(parameters)
        rows, columns = parameters[0].shape[-2:]
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
    """What this rank has of updates, of which each matrix was made orthogonal.

    Args:
        updates: local tensors of matrices that are all shaped and split alike, or one stack.
        like: one of the parameters.
        iteration: arguments of `orthogonalize`.
    """
    if not hasattr(like, "placements"):
        return [orthogonalize(update, **iteration) for update in updates]
    stack_KMN = torch.stack(updates) if like.ndim == 2 else updates[0]
    done_KMN = on_whole_matrices(lambda x: orthogonalize(x, **iteration), stack_KMN, like)
    return list(done_KMN.unbind()) if like.ndim == 2 else [done_KMN]


def orthogonalize(
    matrices: torch.Tensor, *, steps: int, coefficients: tuple[float, float, float], eps: float
) -> torch.Tensor:
    """About the orthogonal matrix that is nearest, of one matrix or of each of a stack.

    Newton and Schulz's iteration with a polynomial of degree 5 (Jordan et al., 2024): singular
    values come to lie around 1. In bfloat16 it equals torch.optim.Muon's, which has no
    other dtype and no stacks.
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
