"""The layer of a decoder: attention and a feed-forward network around a residual stream.

Shapes: B batch, L sequence, D dim.
"""

from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.moe.mixture import Load
from nanigpt.models.sizes import size
from nanigpt.models.slots import uncallable
from nanigpt.models.visibility import Places
from nanigpt.problems import refuse, refuse_all

RecomputationMode = Literal["none", "full", "selective", "budget"]


class TransformerBlock(nn.Module):
    """Pre-norm residual block: attention, then feed-forward.

    Args:
        attention: is called with x_BLD, a cache or None, and places or None; returns out_BLD.
        feed_forward: is called with x_BLD and returns out_BLD. A mixture of experts returns the
            load of its experts besides, and takes it back in `add_load`.
        activation_checkpointing: which activations the backward pass computes again: `none`, `full`
            for all, `selective` for those that cost little, or `budget` for as many as a share of
            memory asks for. `nanigpt.parallel.remat` says what that means, and does it.
    """

    may_change_on_resume = ("activation_checkpointing",)
    multiplies_below = True

    tensor_parallel = {
        "attention_norm": "own",
        "attention": "own",
        "feed_forward_norm": "own",
        "feed_forward": "own",
    }

    def __init__(
        self,
        *,
        attention_norm: nn.Module,
        attention: nn.Module,
        feed_forward_norm: nn.Module,
        feed_forward: nn.Module,
        activation_checkpointing: Annotated[
            RecomputationMode, tags.ActivationCheckpointing
        ] = "none",
    ):
        super().__init__()
        refuse_all(
            [
                *uncallable("attention_norm", attention_norm, "x_BLD"),
                *uncallable("attention", attention, "x_BLD", "cache", "places"),
                *uncallable("feed_forward_norm", feed_forward_norm, "x_BLD"),
                *uncallable("feed_forward", feed_forward, "x_BLD"),
            ]
        )
        if activation_checkpointing not in get_args(RecomputationMode):
            expected = f"one of {', '.join(get_args(RecomputationMode))}"
            refuse("activation_checkpointing", activation_checkpointing, expected)
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.activation_checkpointing = activation_checkpointing

    def stream_dims(self) -> dict[str, int]:
        """Return the arguments that must be as wide as the residual stream, and their widths.

        A module that says no width is left out; `check` runs it instead.
        """
        found = {}
        for name, module in self.named_children():
            dims = getattr(module, "stream_dims", None)
            if dims is not None:
                found |= {f"{name}.{argument}": width for argument, width in dims().items()}
            elif (dim := size(module, "dim")) is not None:
                found[f"{name}.dim"] = dim
        return found

    def forward(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> torch.Tensor:
        x_BLD, load = self.compute(x_BLD, cache, places)
        if load is not None and torch.is_grad_enabled():
            self.feed_forward.add_load(load)
        return x_BLD

    def compute(
        self,
        x_BLD: torch.Tensor,
        cache: LayerCache | None = None,
        places: Places | None = None,
    ) -> tuple[torch.Tensor, Load | None]:
        """Compute the block itself; this is recomputed, and compiled."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cache, places)
        out: Any = self.feed_forward(self.feed_forward_norm(x_BLD))
        out_BLD, load = out if isinstance(out, tuple) else (out, None)
        return x_BLD + out_BLD, load
