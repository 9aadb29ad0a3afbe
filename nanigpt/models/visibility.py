"""Which keys a query sees: one rule for all attention cores.

Shapes: B batch, L queries, S keys.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nanigpt.problems import refuse


class Places(NamedTuple):
    """Where tokens are.

    Attributes:
        positions_BL: in the sequence; None is 0 to L, which only a core sees that prepared for it.
        documents_BL: numbers of their documents; None is one document.
        prepared: what the core that is given it made of these places (`PreparingCore`), or None.
    """

    positions_BL: torch.Tensor | None
    documents_BL: torch.Tensor | None = None
    prepared: Any = None


@dataclass(frozen=True)
class Visibility:
    """A query sees itself and what is earlier, of the same document, within window and chunk.

    Attributes:
        window: the last so many positions, the query's own included (Beltagy et al., 2020).
        chunk: sequences are cut into pieces of so many positions, between which nothing is seen
            (Llama 4's local layers).
    """

    window: int | None = None
    chunk: int | None = None

    def __post_init__(self):
        for name, size in vars(self).items():
            if size is not None and size < 1:
                refuse(name, size, "at least 1 position, or None")

    def sees(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        query_document: torch.Tensor | None = None,
        key_document: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Whether the query at one position sees the key at another; any shapes that broadcast."""
        seen = key <= query
        if self.window is not None:
            seen = seen & (query - key < self.window)
        if self.chunk is not None:
            seen = seen & (query // self.chunk == key // self.chunk)
        if query_document is not None:
            seen = seen & (query_document == key_document)
        return seen

    def mask(self, queries: Places, keys: Places) -> torch.Tensor:
        """mask_BLS: what each query sees."""
        documents: list[torch.Tensor] = []
        if queries.documents_BL is not None:
            documents = [queries.documents_BL.unsqueeze(2), keys.documents_BL.unsqueeze(1)]
        return self.sees(
            queries.positions_BL.unsqueeze(2), keys.positions_BL.unsqueeze(1), *documents
        )

    def limits(self, length: int) -> bool:
        """Whether sequences of `length` see less than all that is earlier."""
        return any(size is not None and size < length for size in (self.window, self.chunk))


CAUSAL = Visibility()


def last_of(length: int, size: int, device: torch.device) -> tuple[Places, Places]:
    """Places of L queries that are the last of S positions of one document, and of the keys."""
    position_S = torch.arange(size, device=device).unsqueeze(0)
    return Places(position_S[:, size - length :]), Places(position_S)
