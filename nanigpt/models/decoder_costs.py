"""Compute a decoder's costs: parameters, FLOPs of training, bytes of the KV cache."""

from typing import Any

import torch
from torch import nn

from nanigpt.models.counts import (
    ParameterCounts,
    declared_flops,
    measured_flops,
    parameter_counts,
    undeclared,
)
from nanigpt.models.protocol import compute_dtype


class DecoderCosts(nn.Module):
    """Costs of a `Decoder`, which inherits from this class.

    Modules declare their multiplications (`nanigpt.models.counts`); plain modules are run on meta.
    """

    embedding: Any
    positions: Any
    layers: nn.ModuleList
    head: Any
    multi_token: Any

    def n_parameters(self) -> int:
        """Count distinct parameters; a tied weight counts once."""
        return sum(p.numel() for p in self.parameters())

    def parameter_counts(self) -> ParameterCounts:
        """Count the parameters of the whole decoder, and those that a token uses."""
        return parameter_counts(self, self.embedding, self.head)

    def cache_bytes(
        self, *, positions: int, batch_size: int = 1, dtype: torch.dtype | None = None
    ) -> int:
        """Return the bytes of `new_caches(capacity=positions)` once they are filled.

        Windows and chunks save nothing here: caches keep all positions. A layer that keeps no cache
        counts nothing.

        Args:
            dtype: Dtype of keys and values; None is the compute dtype.
        """
        attentions: list[Any] = [getattr(block, "attention", None) for block in self.layers]
        kept = (attention for attention in attentions if hasattr(attention, "cache_elements"))
        elements = sum(attention.cache_elements() for attention in kept)
        dtype = dtype or compute_dtype(self)
        return batch_size * positions * elements * dtype.itemsize

    def flops_per_token(self, sequence_length: int) -> int:
        """Return the FLOPs of matrix products per token, forward and backward.

        They are `6 N + 12 L d S` for a dense model, where d is the width of all query heads
        (Chowdhery et al., 2022, appendix B). N counts the weights that a token is multiplied with.
        It includes the head, but not the embedding, because a look-up is no product. It includes
        only the experts that the token is sent to. A multiply-add is two FLOPs. The backward pass
        costs twice the forward, or as much as the forward for frozen weights; it ends at the first
        layer that is trained. The second term covers attention's two products; if keys and values
        differ in width, d is the mean of the two widths. Causality, windows and chunks are not
        discounted; recomputation is not counted.
        """
        main = sum(self.block_flops(sequence_length)) + self.head_flops()
        return main + self.multi_token_flops(sequence_length)

    def block_flops(self, sequence_length: int) -> list[int]:
        """Return the share of each layer in `flops_per_token`."""
        measured = self._measured([b for b in self.layers if b is not None], sequence_length)
        flops, learned = [], _learns(self.embedding) or _learns(self.positions)
        for block in self.layers:
            learned = learned or _learns(block)
            # No backward pass goes through frozen layers at the beginning, before any trained
            # layer.
            cost = self._flops if learned else self._forward_flops
            flops.append(cost(block, sequence_length, measured))
        return flops

    def head_flops(self) -> int:
        """Return the share of the head in `flops_per_token`."""
        return self._flops(self.head, 1, self._measured([self.head], 1))

    def multi_token_flops(self, sequence_length: int) -> int:
        """Return the share of predictions of further tokens, each of which also uses the head."""
        depths = [] if self.multi_token is None else self.multi_token.depths
        measured = self._measured(list(depths), sequence_length, ahead=True)
        return sum(
            self._flops(depth, sequence_length, measured) + self.head_flops() for depth in depths
        )

    def _flops(self, module: nn.Module, length: int, measured: dict[nn.Module, int]) -> int:
        scores = sum(
            attention.score_flops(length)
            for attention in _attentions(module)
            if attention not in measured
        )
        return declared_flops(module) + scores + sum(measured[m] for m in undeclared(module))

    def _forward_flops(self, frozen: nn.Module, length: int, measured: dict[nn.Module, int]) -> int:
        # The forward pass costs half of a frozen weight's cost, and a third of a score's cost.
        scores = sum(attention.score_flops(length) for attention in _attentions(frozen)) // 3
        return (declared_flops(frozen) + sum(measured[m] for m in undeclared(frozen))) // 2 + scores

    def _measured(
        self, modules: list[nn.Module], length: int, *, ahead: bool = False
    ) -> dict[nn.Module, int]:
        """Measure FLOPs per token of modules in `modules` and below that do not declare them.

        Args:
            ahead: Whether to run the prediction of further tokens, too.
        """
        wanted = {found for module in modules for found in undeclared(module)}
        tokens_BL = torch.zeros(1, length, dtype=torch.int64, device="meta")
        flops = measured_flops(self, wanted, lambda: self(tokens_BL, ahead=ahead))
        return {module: total // length for module, total in flops.items()}


def _learns(module: nn.Module | None) -> bool:
    return module is not None and any(p.requires_grad for p in module.parameters())


def _attentions(module: nn.Module) -> list[Any]:
    """Return the modules, from `module` down, that declare the cost of their scores."""
    outside = {m for foreign in undeclared(module) for m in foreign.modules()}
    return [m for m in module.modules() if hasattr(m, "score_flops") and m not in outside]
