"""Decoder-only transformer.

Shapes: B batch, L sequence, D dim, V vocab_size.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

import torch
from torch import nn

from nanigpt import tags
from nanigpt.models.attention_core import PreparingCore
from nanigpt.models.counts import ParameterCounts, active_weights, idle_parameters
from nanigpt.models.embedding import Embedding, TiedHead
from nanigpt.models.feed_forward import FeedForward
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.linear import Linear
from nanigpt.models.moe.mixture import Load, MixtureOfExperts
from nanigpt.models.multi_token import MultiTokenPrediction
from nanigpt.models.norm import RMSNorm
from nanigpt.models.protocol import Finish
from nanigpt.models.self_attention import SelfAttention
from nanigpt.models.sizes import misfits
from nanigpt.models.visibility import Places

RecomputationMode = Literal["none", "full", "selective", "budget"]


class TransformerBlock(nn.Module):
    """Pre-norm residual block: attention, then feed-forward.

    Args:
        activation_checkpointing: which activations the backward pass computes again: `none`, `full`
            for all, `selective` for those that cost little, or `budget` for as many as a share of
            memory asks for. What that means, `nanigpt.parallel.remat` says, and does.
    """

    tensor_parallel = {"attention_norm": "sequence", "feed_forward_norm": "sequence"}

    def __init__(
        self,
        *,
        attention_norm: RMSNorm,
        attention: SelfAttention,
        feed_forward_norm: RMSNorm,
        feed_forward: FeedForward | MixtureOfExperts,
        activation_checkpointing: Annotated[
            RecomputationMode, tags.ActivationCheckpointing
        ] = "none",
    ):
        super().__init__()
        if activation_checkpointing not in get_args(RecomputationMode):
            raise ValueError(
                f"activation_checkpointing={activation_checkpointing!r}: "
                f"expected one of {', '.join(get_args(RecomputationMode))}"
            )
        self.attention_norm = attention_norm
        self.attention = attention
        self.feed_forward_norm = feed_forward_norm
        self.feed_forward = feed_forward
        self.activation_checkpointing = activation_checkpointing

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
        """The block itself, which is what is recomputed, and what is compiled."""
        x_BLD = x_BLD + self.attention(self.attention_norm(x_BLD), cache, places)
        out = self.feed_forward(self.feed_forward_norm(x_BLD))
        out_BLD, load = out if isinstance(out, tuple) else (out, None)
        return x_BLD + out_BLD, load


class Decoder(nn.Module):
    """Embedding, blocks, final norm, output head.

    Args:
        multi_token: predicts further tokens in training, or None.

    Attributes:
        max_sequence_length: positions that every layer's RoPE table has.

    Raises:
        ValueError: the parts do not fit together; the message names them all.
    """

    tensor_parallel = {"embedding": "vocabulary", "norm": "sequence", "head": "logits"}

    def __init__(
        self,
        *,
        embedding: Embedding,
        layers: list[TransformerBlock],
        norm: RMSNorm,
        head: Linear | TiedHead,
        multi_token: MultiTokenPrediction | None = None,
    ):
        super().__init__()
        if not layers:
            raise ValueError("layers=[]: expected at least one block")
        dim = embedding.dim
        expected = {"norm.dim": (norm.dim, dim), "head.in_dim": (head.in_dim, dim)}
        expected["head.out_dim"] = (head.out_dim, embedding.vocab_size)
        blocks = {f"layers[{i}]": block for i, block in enumerate(layers)}
        for i, depth in enumerate([] if multi_token is None else multi_token.depths):
            where = f"multi_token.depths[{i}]"
            if not isinstance(depth.block, TransformerBlock):
                kind = type(depth.block).__name__
                raise ValueError(f"{where}.block is a {kind}: expected a TransformerBlock")
            expected[f"{where}.norm.dim"] = (depth.norm.dim, dim)
            blocks[f"{where}.block"] = depth.block
        for where, block in blocks.items():
            expected |= {
                f"{where}.attention_norm.dim": (block.attention_norm.dim, dim),
                **{
                    f"{where}.attention.{name}": (size, dim)
                    for name, size in block.attention.stream_dims().items()
                },
                f"{where}.feed_forward_norm.dim": (block.feed_forward_norm.dim, dim),
                f"{where}.feed_forward.dim": (block.feed_forward.dim, dim),
            }
        wrong = misfits(expected)
        attentions = [block.attention for block in blocks.values()]
        ropes = [attention.rope for attention in attentions if attention.rope is not None]
        if not ropes:
            wrong.append("no layer has RoPE, whose table says how long sequences can be")
        if isinstance(head, TiedHead) and head.weight is not embedding.weight:
            wrong.append("head is tied to another embedding than the decoder's")
        if wrong:
            shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if wrong[5:] else "")
            raise ValueError(
                f"embedding.dim={dim}, embedding.vocab_size={embedding.vocab_size}: {shown}"
            )
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.multi_token = multi_token
        self.max_sequence_length = min(rope.max_sequence_length for rope in ropes)

    @property
    def vocab_size(self) -> int:
        return self.embedding.vocab_size

    def blocks(self) -> list[TransformerBlock | None]:
        """Of all layers, None where another rank has them, then of what predicts further tokens."""
        depths = [] if self.multi_token is None else self.multi_token.depths
        return [*self.layers, *(depth.block for depth in depths)]

    def forward(
        self,
        tokens_BL: torch.Tensor,
        caches: list[LayerCache] | None = None,
        positions_BL: torch.Tensor | None = None,
        documents_BL: torch.Tensor | None = None,
        *,
        ahead: bool | None = None,
        finish: Finish | None = None,
        targets: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor | list[torch.Tensor]:
        """Return logits_BLV in the compute dtype, or what `finish` makes of hidden states.

        Args:
            caches: hold what came before, and tell positions themselves.
            positions_BL: of the tokens where those are not 0 to L.
            documents_BL: numbers of the tokens' documents where they are of several.
            ahead: predict further tokens too, and return a list: logits_BLV of the next token, then
                those of each depth of `multi_token`. By default this is done where `finish` is
                given in training mode, and costs nothing otherwise.
            finish: is called with the head, the hidden states x_BLD of the next token and of each
                further one, and the targets; its result is returned (see nanigpt.tasks.task).
            targets: named arguments for `finish`.
        """
        if ahead is None:
            ahead = finish is not None and self.training
        places = None
        if documents_BL is not None and positions_BL is None:
            length = documents_BL.shape[1]  # of a pipeline's activations ranks of `tp` have parts
            positions_BL = torch.arange(length, device=tokens_BL.device).expand_as(documents_BL)
        if positions_BL is not None:
            places = Places(positions_BL, documents_BL)
        of = [places] * len(self.blocks())
        if caches is None:  # which tell places themselves
            of = self._prepared(places, tokens_BL, ahead=ahead)
        x_BLD = tokens_BL if self.embedding is None else self.embedding(tokens_BL)
        for i, block in enumerate(self.layers):
            if block is not None:
                x_BLD = block(x_BLD, caches[i] if caches is not None else None, of[i])
        if self.head is None:
            return x_BLD
        outs = [self.norm(x_BLD)]
        if ahead and self.multi_token is not None:
            outs += self.multi_token(x_BLD, tokens_BL, self.embedding, of[len(self.layers) :])
        if finish is not None:
            return finish(self.head, *outs, **targets)
        logits = [self.head(out_BLD) for out_BLD in outs]
        return logits if ahead else logits[0]

    def _prepared(
        self, places: Places | None, tokens_BL: torch.Tensor, *, ahead: bool
    ) -> list[Places | None]:
        """Places for each of `blocks()`, with what its core makes of them.

        Blocks whose cores are of one class and see alike share what is made once.
        """
        blocks = self.blocks()
        of = [places] * len(blocks)
        if places is None and self.embedding is None:
            return of  # of what a pipeline hands on, ranks of `tp` have parts of the sequence
        batch, length = tokens_BL.shape if places is None else places.positions_BL.shape
        made: dict[Any, Places] = {}
        for i, block in enumerate(blocks if ahead else self.layers):
            if block is None or not isinstance(block.attention.core, PreparingCore):
                continue
            core, visibility = block.attention.core, block.attention.visibility
            if (type(core), visibility) not in made:
                made[type(core), visibility] = core.prepare(
                    places,
                    visibility=visibility,
                    batch=batch,
                    length=length,
                    device=tokens_BL.device,
                )
            of[i] = made[type(core), visibility]
        return of

    def part(self, layers: Sequence[int], *, embedding: bool | None = None) -> "Decoder":
        """Some of the blocks, as a pipeline's rank has them; modules are shared, and keep names.

        The embedding goes with the first block, norm and head with the last. What is absent is
        None, and passed over in the forward pass.

        Args:
            embedding: whether to have the embedding, by default if the first block is there.
        """
        part = object.__new__(type(self))
        nn.Module.__init__(part)
        first = 0 in layers if embedding is None else embedding
        last = len(self.layers) - 1 in layers
        part.embedding = self.embedding if first else None
        part.layers = nn.ModuleList()
        for i, block in enumerate(self.layers):
            part.layers.add_module(str(i), block if i in layers else None)
        part.norm = self.norm if last else None
        part.head = self.head if last else None
        part.multi_token = None
        part.max_sequence_length = self.max_sequence_length
        return part

    def new_caches(self, *, capacity: int) -> list[LayerCache]:
        """Empty caches for `capacity` positions, one a layer."""
        return [LayerCache(capacity=capacity) for _ in self.layers]

    def shard_groups(self) -> list[list[nn.Module]]:
        """Modules whose parameters are gathered together, in the order of the forward pass.

        What is in no group belongs to the whole model: a tied weight is used first and last. Where
        further tokens are predicted, embedding and head are gathered for each use, as groups of
        their own; the modules of one group must be used equally often, so the norm is in none.
        """
        blocks = [[block] for block in self.layers if block is not None]
        if self.multi_token is not None:
            blocks += [[depth] for depth in self.multi_token.depths]
        if self.embedding is not None and isinstance(self.head, TiedHead):
            return blocks
        first = [] if self.embedding is None else [[self.embedding]]
        last = [] if self.head is None else [[self.norm, self.head]]
        if self.multi_token is not None:
            last = [[self.head]]
        return [*first, *blocks, *last]

    def n_parameters(self) -> int:
        """Distinct parameters, a tied weight counted once."""
        return sum(p.numel() for p in self.parameters())

    def parameter_counts(self) -> ParameterCounts:
        """How many parameters the whole decoder has, and how many of them a token uses."""
        total = self.n_parameters()
        return ParameterCounts(
            total=total,
            active=total - idle_parameters(self),
            embedding=self.embedding.weight.numel(),
            tied=isinstance(self.head, TiedHead),
        )

    def cache_bytes(
        self, *, positions: int, batch_size: int = 1, dtype: torch.dtype | None = None
    ) -> int:
        """Bytes that `new_caches(capacity=positions)` hold as soon as they hold something.

        Windows and chunks save nothing here: caches keep all positions.

        Args:
            dtype: of keys and values; None is the compute dtype.
        """
        elements = sum(block.attention.cache_elements() for block in self.layers)
        dtype = dtype or self.embedding.compute_dtype
        return batch_size * positions * elements * dtype.itemsize

    def flops_per_token(self, sequence_length: int) -> int:
        """FLOPs of matrix products per token, forward and backward: `6 N + 12 L d S` of a dense
        model, where d is all query heads' width (Chowdhery et al., 2022, appendix B).

        N counts the weights that a token is multiplied with: those of the head, but no embedding,
        whose look-up is no product, and of experts those that it is sent to. A multiply-add is two
        FLOPs, and the backward pass costs twice the forward. The second term is attention's two
        products, with the mean of keys' and values' width for d where they differ; what causality,
        windows and chunks hide is not discounted, and what activation checkpointing computes again
        is not counted.
        """
        main = sum(self.block_flops(sequence_length)) + self.head_flops()
        return main + self.multi_token_flops(sequence_length)

    def block_flops(self, sequence_length: int) -> list[int]:
        """What each block has of `flops_per_token`."""
        return [
            6 * active_weights(block) + block.attention.score_flops(sequence_length)
            for block in self.layers
        ]

    def head_flops(self) -> int:
        """What the head has of `flops_per_token`."""
        return 6 * active_weights(self.head)

    def multi_token_flops(self, sequence_length: int) -> int:
        """What predictions of further tokens have of `flops_per_token`: each is of the head too."""
        return sum(
            6 * active_weights(depth)
            + depth.block.attention.score_flops(sequence_length)
            + self.head_flops()
            for depth in ([] if self.multi_token is None else self.multi_token.depths)
        )
