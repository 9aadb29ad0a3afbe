"""The rule for which keys a query sees, shared by all attention cores.

Shapes: B batch, L queries, S keys.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from nanigpt.problems import refuse


class Places(NamedTuple):
    """Positions and documents of tokens.

    Attributes:
        positions_BL: Positions in the sequence. None means 0 to L, and occurs only with a core that
            has prepared for it.
        documents_BL: Number of each token's document. None means that there is one document.
        prepared: Data that the core computed from these places (`PreparingCore`), or None.
    """

    positions_BL: torch.Tensor | None
    documents_BL: torch.Tensor | None = None
    prepared: Any = None


@dataclass(frozen=True)
class Visibility:
    """The rule: a query sees itself and earlier keys of its document, within window and chunk.

    Attributes:
        window: Number of last positions that a query sees, including its own (Beltagy et al.,
            2020).
        chunk: Number of positions in a chunk. A query sees no other chunk than its own (Llama 4's
            local layers).
    """

    window: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
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
        """Return whether queries see keys, given their positions in any shapes that broadcast."""
        seen = key <= query
        if self.window is not None:
            seen = seen & (query - key < self.window)
        if self.chunk is not None:
            seen = seen & (query // self.chunk == key // self.chunk)
        if query_document is not None:
            seen = seen & (query_document == key_document)
        return seen

    def mask(self, queries: Places, keys: Places) -> torch.Tensor:
        """Return mask_BLS, which is true where a query sees a key."""
        query, key = queries.positions_BL, keys.positions_BL
        assert query is not None and key is not None, "mask: expected places with positions"
        documents: list[torch.Tensor] = []
        if queries.documents_BL is not None and keys.documents_BL is not None:
            documents = [queries.documents_BL.unsqueeze(2), keys.documents_BL.unsqueeze(1)]
        return self.sees(query.unsqueeze(2), key.unsqueeze(1), *documents)

    def limits(self, length: int) -> bool:
        """Return whether a query in sequences of `length` may not see every earlier key."""
        return any(size is not None and size < length for size in (self.window, self.chunk))


CAUSAL = Visibility()


def last_of(length: int, size: int, device: torch.device) -> tuple[Places, Places]:
    """Return the places of queries (the last `length` of `size` positions) and of all keys."""
    position_S = torch.arange(size, device=device).unsqueeze(0)
    return Places(position_S[:, size - length :]), Places(position_S)
