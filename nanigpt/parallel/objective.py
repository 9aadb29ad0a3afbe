"""The part of a task that forward and backward passes use. `nanigpt.tasks.task` explains it."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from nanigpt.data.batch import Batch

SomeBatch = TypeVar("SomeBatch", bound=Batch, contravariant=True)


class Objective(Protocol[SomeBatch]):
    """The computation of losses from a batch."""

    def losses(self, model: nn.Module, /) -> Sequence[str]: ...

    def inputs(self, batch: SomeBatch, /) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...

    def targets(self, batch: SomeBatch, /) -> dict[str, torch.Tensor]: ...

    def finish(
        self, head: nn.Module, hidden: torch.Tensor, /, *further: Any, **targets: Any
    ) -> torch.Tensor: ...

    def objective(self, means: torch.Tensor, model: nn.Module, /) -> torch.Tensor: ...
