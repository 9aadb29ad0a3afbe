"""The plan of a run, which every policy asks about, and the protocol of a policy."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from nanigpt.parallel.mesh import Layout
from nanigpt.problems import Problem


@dataclass(frozen=True)
class Plan:
    """How a run uses its ranks, as far as it is known before any process starts.

    Attributes:
        sizes: ranks along each axis of the mesh, and along `ep`.
        local_batch: samples in one pass of one rank.
        sequence_length: tokens of a sample, or None for samples without a sequence.
        mask_documents: whether tokens see only their own document.
        compiled: whether torch.compile compiles the model.
        splits_backward: whether the pipeline computes gradients of inputs and of weights apart.
        mesh, data, trainer: components that have these numbers as arguments, for problems to name.
    """

    sizes: dict[str, int]
    local_batch: int
    sequence_length: int | None = None
    mask_documents: bool = False
    compiled: bool = False
    splits_backward: bool = False
    mesh: object | None = None
    data: object | None = None
    trainer: object | None = None

    @property
    def shards(self) -> int:
        """Ranks that parameters are sharded over."""
        return self.sizes["dp_shard"] * self.sizes["cp"]

    @property
    def copies(self) -> int:
        """Ranks that hold the same layers, whole or in shards."""
        return self.sizes["dp_replicate"] * self.shards


class Reporting(Protocol):
    """A component that knows why a model cannot run by a plan."""

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return everything for which `model` cannot run so."""
        ...


@runtime_checkable
class Policy(Reporting, Protocol):
    """One way in which a model is spread, stored or computed.

    A policy may say `may_change_on_resume = True` where a resumed run may have another one, and
    name in `axes` the axes of the mesh that its problems follow from.
    """

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Change this rank's part of the model in place, while it is on meta."""
        ...
