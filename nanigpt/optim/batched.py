"""Optimizers that update a batch of parameters at a time, by operations on lists of tensors."""

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

Parameters = list[torch.nn.Parameter]


class BatchedOptimizer(torch.optim.Optimizer, abc.ABC):
    """An optimizer of PyTorch whose subclasses write the update of one batch of parameters."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients; return the closure's loss, or None."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_groups(self.param_groups)
        return loss

    def _update_groups(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            for batch in self._batches([p for p in group["params"] if p.grad is not None]):
                self._update(batch, group)

    @abc.abstractmethod
    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        """Divide parameters into batches that are updated together."""

    @abc.abstractmethod
    def _update(self, batch: Parameters, group: dict[str, Any]) -> None: ...


def local(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return this rank's part of each DTensor, and other tensors unchanged."""
    return [getattr(x, "_local_tensor", x) for x in tensors]


def gradients(parameters: Parameters) -> list[torch.Tensor]:
    """Return this rank's part of the gradients of parameters that all have one."""
    return local([p.grad for p in parameters if p.grad is not None])
