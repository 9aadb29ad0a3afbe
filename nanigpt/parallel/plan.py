"""The plan of a run, which every policy reads, and the protocol of a policy."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from nanigpt.parallel.mesh import Layout
from nanigpt.problems import Problem


@dataclass(frozen=True)
class Plan:
    """The use of ranks in a run, as far as it is known before any process starts.

    Attributes:
        sizes: Number of ranks along each axis of the mesh, and along `ep`.
        local_batch: Number of samples in one pass of one rank.
        sequence_length: Number of tokens of a sample, or None for samples without a sequence.
        mask_documents: Whether tokens see only their own document.
        compiled: Whether torch.compile compiles the model.
        splits_backward: Whether the pipeline computes gradients of inputs and of weights
            separately.
        mesh, data, trainer: Components that have these numbers as arguments. Problems name them.
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
        """Return the number of ranks that parameters are sharded over."""
        return self.sizes["dp_shard"] * self.sizes["cp"]

    @property
    def copies(self) -> int:
        """Return the number of ranks that hold the same layers, whole or in shards."""
        return self.sizes["dp_replicate"] * self.shards


class Reporting(Protocol):
    """A component that finds reasons why a model cannot run by a plan."""

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return all reasons why `model` cannot run by this plan."""
        ...


@runtime_checkable
class Policy(Reporting, Protocol):
    """One way to distribute, store or compute a model.

    A policy may declare `may_change_on_resume = True` if a resumed run may have a different policy.
    It may name in `axes` the axes of the mesh that cause its problems.
    """

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Change this rank's part of the model in place, while it is on meta."""
        ...
