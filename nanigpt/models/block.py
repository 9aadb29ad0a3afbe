"""Layers of a decoder: attention and a feed-forward network around a residual stream.

Shapes: B batch, L sequence, D dim.
"""

import abc
from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.dropout import Dropout
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.moe.mixture import Load
from nanigpt.models.slots import uncallable
from nanigpt.models.visibility import Places
from nanigpt.models.widths import declared_sizes
from nanigpt.problems import refuse_all, require_choice

RecomputationMode = Literal["none", "full", "selective", "budget"]


class Block(nn.Module, abc.ABC):
    """Base class of layers: their parts, and the code around their computation.

    Args:
        attention_norm: Norm that is called with x_BLD before attention; None is no norm.
        attention: Module that is called with x_BLD, a cache or None, and places or None; returns
            out_BLD.
        feed_forward_norm: Norm that is called with x_BLD before the feed-forward network; None is
            no norm.
        feed_forward: Module that is called with x_BLD and returns out_BLD. A mixture of experts
            also returns the load of its experts, and takes it back in `add_load`.
        dropout: Dropout of the outputs that attention and the feed-forward network add to the
            stream, or None.
        activation_checkpointing: Mode that selects the activations that the backward pass computes
            again: `none`, `full` for all, `selective` for cheap ones, or `budget` for as many as a
            share of memory requires. `nanigpt.parallel.remat` explains and implements these modes.
    """

    may_change_on_resume: tuple[str, ...] = ("activation_checkpointing",)
    multiplies_below = True
    shape_preserving = (
        *("attention_norm", "attention", "post_attention_norm"),
        *("feed_forward_norm", "feed_forward", "post_feed_forward_norm"),
    )

    tensor_parallel = {
        "attention_norm": "own",
        "attention": "own",
        "feed_forward_norm": "own",
        "feed_forward": "own",
        "dropout": "own",
    }

    def __init__(
        self,
        *,
        attention_norm: nn.Module | None,
        attention: nn.Module,
        feed_forward_norm: nn.Module | None,
        feed_forward: nn.Module,
        dropout: Dropout | None,
        activation_checkpointing: RecomputationMode,
        **norms: nn.Module | None,
    ):
        super().__init__()
        norms = {
            "attention_norm": attention_norm,
            "feed_forward_norm": feed_forward_norm,
            **norms,
        }
        refuse_all(
            [
                *uncallable("attention", attention, "x_BLD", "cache", "places"),
                *uncallable("feed_forward", feed_forward, "x_BLD"),
                *(
                    problem
                    for name, norm in norms.items()
                    if norm is not None
                    for problem in uncallable(name, norm, "x_BLD")
                ),
            ]
        )
        modes = get_args(RecomputationMode)
        require_choice(modes, activation_checkpointing=activation_checkpointing)
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.dropout = dropout
        self.activation_checkpointing = activation_checkpointing

    def stream_dims(self) -> dict[str, int]:
        """Return the arguments that must be as wide as the residual stream, and their widths.

        A module that declares no width is left out; `check` runs it instead.
        """
        found: dict[str, int] = {}
        for name, module in self.named_children():
            dims = getattr(module, "stream_dims", None)
            if dims is not None:
                found |= {f"{name}.{argument}": width for argument, width in dims().items()}
            else:
                found |= declared_sizes({f"{name}.dim": module})
        return found

    def forward(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        first_row = None if self.dropout is None else self.dropout.draw(x_BLD)
        x_BLD, load = self.compute(x_BLD, cache, places, first_row)
        if load is not None and torch.is_grad_enabled():
            mixture: Any = self.feed_forward
            mixture.add_load(load)
        return x_BLD

    @abc.abstractmethod
    def compute(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
        first_row: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Load | None]:
        """Compute the block itself; this method is recomputed and compiled.

        Args:
            first_row: Number of the first row of x, by which `dropout` chooses; None drops nothing.
        """

    def _dropped(
        self, x_BLD: torch.Tensor, first_row: torch.Tensor | None, use: int
    ) -> torch.Tensor:
        if self.dropout is None or first_row is None:
            return x_BLD
        return self.dropout(x_BLD, first_row, use)

    def _fed_forward(self, x_BLD: torch.Tensor) -> tuple[torch.Tensor, Load | None]:
        out: Any = self.feed_forward(x_BLD)
        return out if isinstance(out, tuple) else (out, None)


class TransformerBlock(Block):
    """Residual block: attention, then the feed-forward network, with norms before or after each.

    By default norms come before (GPT-2, Llama). OLMo 2 ("reordered") has norms only after each
    module, but before the sum; Gemma 2 ("sandwich") has both.

    Args:
        attention_norm, attention, feed_forward_norm, feed_forward, dropout: As in `Block`.
        post_attention_norm: Norm of the output that attention adds to the stream, or None.
        post_feed_forward_norm: Norm of the output that the feed-forward network adds to the stream,
            or None.
        activation_checkpointing: As in `Block`.
    """

    tensor_parallel = {
        **Block.tensor_parallel,
        "post_attention_norm": "own",
        "post_feed_forward_norm": "own",
    }

    def __init__(
        self,
        *,
        attention_norm: nn.Module | None,
        attention: nn.Module,
        feed_forward_norm: nn.Module | None,
        feed_forward: nn.Module,
        post_attention_norm: nn.Module | None = None,
        post_feed_forward_norm: nn.Module | None = None,
        dropout: Dropout | None = None,
        activation_checkpointing: Annotated[
            RecomputationMode, tags.ActivationCheckpointing
        ] = "none",
    ):
        super().__init__(
            attention_norm=attention_norm,
            attention=attention,
            feed_forward_norm=feed_forward_norm,
            feed_forward=feed_forward,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
            post_attention_norm=post_attention_norm,
            post_feed_forward_norm=post_feed_forward_norm,
        )
        self.post_attention_norm = post_attention_norm
        self.post_feed_forward_norm = post_feed_forward_norm

    def compute(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
        first_row: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Load | None]:
        out_BLD = self.attention(_normed(x_BLD, self.attention_norm), cache, places)
        out_BLD = _normed(out_BLD, self.post_attention_norm)
        x_BLD = x_BLD + self._dropped(out_BLD, first_row, 0)
        out_BLD, load = self._fed_forward(_normed(x_BLD, self.feed_forward_norm))
        out_BLD = _normed(out_BLD, self.post_feed_forward_norm)
        return x_BLD + self._dropped(out_BLD, first_row, 1), load


class ParallelBlock(Block):
    """Residual block whose attention and feed-forward network read the same stream.

    (GPT-J, 2021, and PaLM, 2022, with one norm for both; GPT-NeoX, 2022, with two.)

    Args:
        attention_norm, attention, feed_forward, dropout: As in `Block`.
        feed_forward_norm: Norm before the feed-forward network; None reuses the output of
            `attention_norm`.
        activation_checkpointing: As in `Block`.
    """

    def __init__(
        self,
        *,
        attention_norm: nn.Module | None,
        attention: nn.Module,
        feed_forward: nn.Module,
        feed_forward_norm: nn.Module | None = None,
        dropout: Dropout | None = None,
        activation_checkpointing: Annotated[
            RecomputationMode, tags.ActivationCheckpointing
        ] = "none",
    ):
        super().__init__(
            attention_norm=attention_norm,
            attention=attention,
            feed_forward_norm=feed_forward_norm,
            feed_forward=feed_forward,
            dropout=dropout,
            activation_checkpointing=activation_checkpointing,
        )

    def compute(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
        first_row: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Load | None]:
        read_BLD = _normed(x_BLD, self.attention_norm)
        added_BLD = self._dropped(self.attention(read_BLD, cache, places), first_row, 0)
        if self.feed_forward_norm is not None:
            read_BLD = self.feed_forward_norm(x_BLD)
        out_BLD, load = self._fed_forward(read_BLD)
        return x_BLD + added_BLD + self._dropped(out_BLD, first_row, 1), load


def _normed(x_BLD: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
    return x_BLD if norm is None else norm(x_BLD)
