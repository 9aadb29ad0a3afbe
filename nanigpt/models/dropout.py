"""Dropout whose choices are a function of numbers, not of a generator's state.

The choice depends on the module's stream and on the numbers of the row and of the position. The
run's seed and the module's name determine the stream, as for an initial weight. So a layer that
computes its activations again drops the same ones, compiled code needs no generator, and ranks of
tensor parallelism and of a pipeline drop the same features as one process.

Shapes: B batch, L sequence, D dim.
"""

import torch
from torch import nn

from nanigpt.problems import refuse

_31_BITS = (1 << 31) - 1  # two such numbers have a product that fits into an int64


class Dropout(nn.Module):
    """Dropout that sets features to 0 with probability p, and scales the rest by 1 / (1 - p).

    (Srivastava et al., 2014.) It acts in training only. `draw` is called outside the part that a
    block computes again, and the module is applied inside it. Without a gradient, as in evaluation
    and sampling, it does nothing. Uncompiled it briefly holds some int64 numbers per feature, and
    keeps a boolean per feature until the backward pass.

    Args:
        p: Probability; 0 costs nothing, and leaves nothing in a checkpoint.

    Attributes:
        rows: Count of the sequences that this rank has had, a persistent buffer.
        stream: Random number of this module, a buffer.
        place: Number that differs between ranks that see different tokens under equal numbers.
        part: Number of the equal part of the sequence that this rank has between modules.
    """

    multiplies_below = True
    tensor_parallel = "pointwise"

    def __init__(self, *, p: float = 0.0):
        super().__init__()
        if not 0 <= p < 1:
            refuse("p", p, "0 or more, less than 1")
        self.p = p
        self.place = 0
        self.part = 0
        self._drawn = 0
        self.rows: torch.Tensor
        self.stream: torch.Tensor
        for name, persistent in {"rows": True, "stream": False}.items():
            buffer = torch.zeros((), dtype=torch.int64, device="meta") if p else None
            self.register_buffer(name, buffer, persistent=persistent)

    def reset_parameters(self) -> None:
        """Reset the count of rows, and draw the stream."""
        if self.p:
            self.rows.zero_()
            self.stream.random_()

    def draw(self, x_BLD: torch.Tensor) -> torch.Tensor | None:
        """Count the rows of x; return the number of the first, or None if nothing is dropped."""
        if not (self.p and self.training and torch.is_grad_enabled()):
            return None
        first = self.rows.clone()
        self._drawn = x_BLD.shape[0]
        self.rows += self._drawn
        return first

    def take_back(self) -> None:
        """Subtract the rows of the last `draw` from the count: no training step used them."""
        if self.p:
            self.rows -= self._drawn
            self._drawn = 0

    def forward(
        self, x_BLD: torch.Tensor, first: torch.Tensor | None = None, use: int = 0
    ) -> torch.Tensor:
        """Return x_BLD with some features set to 0.

        Args:
            first: Number of the first row, as `draw` returned it; None draws here.
            use: Number of the use, if several uses of one module have the same rows.
        """
        if first is None:
            first = self.draw(x_BLD)
        if first is None:
            return x_BLD
        kept_BLD = self._numbers(x_BLD, first, use) >= int(self.p * (1 << 31))
        return torch.where(kept_BLD, x_BLD / (1 - self.p), 0.0)

    def _numbers(self, x_BLD: torch.Tensor, first: torch.Tensor, use: int) -> torch.Tensor:
        """Return a random number of 31 bits for each feature."""
        batch, length, dim = x_BLD.shape

        def count(n: int, start: int = 0) -> torch.Tensor:
            return torch.arange(start, start + n, device=x_BLD.device)

        row_B = first + count(batch)
        key_B = _mixed((self.stream & _31_BITS) + self.place)
        key_B = _mixed(key_B + (self.stream >> 31))
        key_B = _mixed(_mixed(key_B + (row_B & _31_BITS)) + (row_B >> 31))
        position_L = count(length, self.part * length)
        key_BL = _mixed(key_B[:, None] + position_L * 0x2545F491)
        feature_D = count(dim, use * dim) * 0x1B873593
        return _mixed(key_BL[:, :, None] + feature_D)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Return numbers of 31 bits, each bit of which depends on all bits of x.

    (Constants: Wellons, github.com/skeeto/hash-prospector.)
    """
    x = x & _31_BITS
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _31_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _31_BITS
    return x ^ (x >> 15)
