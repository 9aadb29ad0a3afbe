"""Optimizers that update some parameters at a time, by operations on lists of tensors."""

import abc
from collections.abc import Callable, Iterator

import torch

Parameters = list[torch.nn.Parameter]


class BatchedOptimizer(torch.optim.Optimizer, abc.ABC):
    """What upstream asks of an optimizer, around the update of one batch of parameters."""

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update_groups(self.param_groups)
        return loss

    def _update_groups(self, groups: list[dict]) -> None:
        for group in groups:
            for batch in self._batches([p for p in group["params"] if p.grad is not None]):
                self._update(batch, group)

    @abc.abstractmethod
    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        """Divides parameters into those that are updated together."""

    @abc.abstractmethod
    def _update(self, batch: Parameters, group: dict) -> None: ...


def local(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What this rank has of DTensors; other tensors as they are."""
    return [getattr(x, "_local_tensor", x) for x in tensors]
