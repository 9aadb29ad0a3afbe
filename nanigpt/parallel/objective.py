"""The part of a task that forward and backward passes use. `nanigpt.tasks.task` explains it."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from nanigpt.data.batch import Batch


class Objective(Protocol):
    """How losses are computed from a batch."""

    def losses(self, model: nn.Module, /) -> Sequence[str]: ...

    def inputs(self, batch: Batch, /) -> tuple[torch.Tensor, dict[str, torch.Tensor]]: ...

    def targets(self, batch: Batch, /) -> dict[str, torch.Tensor]: ...

    def finish(
        self, head: nn.Module, hidden: torch.Tensor, /, *further: torch.Tensor, **targets: Any
    ) -> torch.Tensor: ...

    def objective(self, means: torch.Tensor, model: nn.Module, /) -> torch.Tensor: ...
