"""Batches: tensors whose dim 0 is the sample.

Shapes: B batch, L sequence_length.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch


@dataclass(frozen=True)
class Batch:
    """Columns of samples. A subclass declares its columns as fields; a column may be None.

    Attributes:
        sequence_dims: Names of the columns that hold the sequence, and the sequence's dim. Context
            parallelism gives each rank a part of these dims; other columns stay whole.
    """

    sequence_dims: ClassVar[dict[str, int]] = {}

    def columns(self) -> dict[str, torch.Tensor]:
        """Return the columns that are not None, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: column for name, column in named if column is not None}

    def replace(self, **columns: torch.Tensor | None) -> Self:
        """Return a batch with some columns replaced."""
        return replace(self, **columns)

    def pinned(self) -> Self:
        """Return a copy in page-locked memory, from which a GPU copies while the host goes on."""
        return self.replace(**{name: x.pin_memory() for name, x in self.columns().items()})

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device; the host does not wait for the copy."""
        batch = self.pinned() if device.type == "cuda" else self
        moved = {n: x.to(device, non_blocking=True) for n, x in batch.columns().items()}
        return self.replace(**moved)

    def sequence_length(self) -> int | None:
        """Return the length of the sequence, or None if no column holds one."""
        columns = self.columns()
        dims = self.sequence_dims.items()
        return next((columns[name].shape[dim] for name, dim in dims if name in columns), None)

    def cut(self, positions_L: torch.Tensor) -> Self:
        """Return the given positions of the sequence, from every column that holds it.

        A subclass whose model accepts positions overrides this and adds them.
        """
        columns = self.columns()
        return self.replace(
            **{
                name: columns[name].index_select(dim, positions_L.to(columns[name].device))
                for name, dim in self.sequence_dims.items()
                if name in columns
            }
        )


@dataclass(frozen=True)
class TokenBatch(Batch):
    """Sequences of tokens, and the token to predict at each position.

    Attributes:
        tokens_BL: ids of tokens.
        labels_BL: `labels_BL[b, l]` is the token after `tokens_BL[b, l]`. The label `IGNORED` is
            not learned.
        positions_BL: places of the tokens in their sequences, or None where they are 0 to L.
        documents_BL: numbers of the tokens' documents, where tokens see only their own document.
    """

    sequence_dims: ClassVar[dict[str, int]] = {
        "tokens_BL": 1,
        "labels_BL": 1,
        "positions_BL": 1,
        "documents_BL": 1,
    }

    tokens_BL: torch.Tensor
    labels_BL: torch.Tensor
    positions_BL: torch.Tensor | None = None
    documents_BL: torch.Tensor | None = None

    def cut(self, positions_L: torch.Tensor) -> Self:
        part = super().cut(positions_L)
        if self.positions_BL is not None:
            return part
        return part.replace(positions_BL=positions_L.expand_as(part.tokens_BL))


IGNORED = -100
"""The label of a position that is not learned."""
