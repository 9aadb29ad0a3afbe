"""Decoder-only transformer.

Shapes: B batch, L sequence, D dim, V vocab_size.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from nanigpt.models.attention_core import PreparingCore
from nanigpt.models.block import RecomputationMode, TransformerBlock
from nanigpt.models.decoder_costs import DecoderCosts
from nanigpt.models.embedding import TiedHead
from nanigpt.models.kv_cache import LayerCache
from nanigpt.models.multi_token import MultiTokenPrediction
from nanigpt.models.protocol import Finish
from nanigpt.models.slots import uncallable
from nanigpt.models.visibility import Places
from nanigpt.models.widths import misfits, own_name
from nanigpt.problems import Problem, refuse, refuse_all

__all__ = ["Decoder", "RecomputationMode", "TransformerBlock"]


class Decoder(DecoderCosts):
    """Decoder of embedding, blocks, final norm and output head.

    Args:
        embedding: Module that is called with tokens_BL and returns x_BLD.
        layers: Blocks; each is called with x_BLD, a cache or None, and places or None.
        norm: Norm that is called with x_BLD before the head.
        head: Module that is called with x_BLD and returns logits_BLV.
        positions: Module, such as learned positions, that is called after the embedding with x_BLD
            and with positions_BL or None; None if attention knows the positions, or no module does.
        multi_token: Module that predicts further tokens in training, or None.

    Attributes:
        max_sequence_length: Longest sequence that every module which knows positions accepts, or
            None if none has a limit.
        keeps_caches: Whether every layer can continue from a cache, which its attention declares by
            a method `cache_elements`. Otherwise sampling recomputes all positions for each token.

    Raises:
        ComponentError: Sizes that the modules declare do not fit together; it lists every problem.
    """

    shape_preserving = ("layers", "norm", "positions")

    tensor_parallel = {
        "embedding": "vocabulary",
        "positions": "positions",
        "norm": "own",
        "head": "logits",
    }

    def __init__(
        self,
        *,
        embedding: nn.Module,
        layers: list[nn.Module],
        norm: nn.Module,
        head: nn.Module,
        positions: nn.Module | None = None,
        multi_token: MultiTokenPrediction | None = None,
    ):
        super().__init__()
        if not layers:
            refuse("layers", [], "at least one block")
        dim, vocab_size = _table_size(embedding)
        if dim is None or vocab_size is None:
            wanted = "an embedding with dim and vocab_size, or with one weight [vocab_size, dim]"
            refuse("embedding", type(embedding), wanted)
        wide: dict[str, Any] = {"norm.dim": norm, "head.in_dim": head}
        blocks = {f"layers[{i}]": block for i, block in enumerate(layers)}
        depths: list[Any] = [] if multi_token is None else list(multi_token.depths)
        for i, depth in enumerate(depths):
            where = f"multi_token.depths[{i}]"
            wide[f"{where}.norm.dim"] = depth.norm
            blocks[f"{where}.block"] = depth.block
        refuse_all(
            problem
            for where, block in blocks.items()
            for problem in uncallable(where, block, "x_BLD", "cache", "places")
        )
        for where, block in blocks.items():
            dims: dict[str, int] = getattr(block, "stream_dims", dict)()
            wide |= {f"{where}.{name}": width for name, width in dims.items()}
        expected = {path: (owner, dim) for path, owner in wide.items()}
        wrong = misfits(expected, {_path(embedding, "dim"): dim})
        rows = {"head.out_dim": (head, vocab_size)}
        wrong += misfits(rows, {_path(embedding, "vocab_size"): vocab_size})
        if isinstance(head, TiedHead) and head.weight is not getattr(embedding, "weight", None):
            wrong.append(Problem("head", head, "a head that is tied to the decoder's embedding"))
        refuse_all(wrong)
        self.embedding = embedding
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.head = head
        self.positions = positions
        self.multi_token = multi_token
        attentions = (getattr(block, "attention", None) for block in layers)
        self.keeps_caches = all(hasattr(attention, "cache_elements") for attention in attentions)
        limits = (getattr(module, "max_sequence_length", None) for module in self.modules())
        self.max_sequence_length = min((n for n in limits if n is not None), default=None)

    @property
    def dim(self) -> int:
        """Return the number of features of the residual stream."""
        dim, _ = _table_size(self.embedding)
        assert dim is not None, "the embedding says neither dim nor has one table"
        return dim

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of activations, which the embedding decides."""
        own = getattr(self.embedding, "compute_dtype", None)
        return own or next(self.embedding.parameters()).dtype

    @property
    def vocab_size(self) -> int:
        _, vocab_size = _table_size(self.embedding)
        assert vocab_size is not None, "the embedding says neither vocab_size nor has one table"
        return vocab_size

    def blocks(self) -> list[TransformerBlock | None]:
        """Return the blocks of all layers and `multi_token`; None stands for another rank's."""
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
        """Return logits_BLV in the compute dtype, or the result of `finish` on hidden states.

        Args:
            caches: Caches of past positions, which also determine the positions of the tokens.
            positions_BL: Positions of the tokens, if they are not 0 to L.
            documents_BL: Numbers of the tokens' documents, if there are several documents.
            ahead: Whether to predict further tokens too, and return a list: logits_BLV of the next
                token, then those of each depth of `multi_token`. By default this is done if
                `finish` is given in training mode, and costs nothing otherwise.
            finish: Function that is called with the head, the hidden states x_BLD of the next token
                and of each further one, and the targets; its result is returned (see
                nanigpt.tasks.task).
            targets: Named arguments for `finish`.
        """
        if ahead is None:
            ahead = finish is not None and self.training
        places = None
        if documents_BL is not None and positions_BL is None:
            # In a pipeline, ranks of `tp` have parts of the activations.
            length = documents_BL.shape[1]
            positions_BL = torch.arange(length, device=tokens_BL.device).expand_as(documents_BL)
        if positions_BL is not None:
            places = Places(positions_BL, documents_BL)
        of = [places] * len(self.blocks())
        if caches is None:  # caches determine places themselves
            of = self._prepared(places, tokens_BL, ahead=ahead)
        x_BLD = tokens_BL if self.embedding is None else self.embedding(tokens_BL)
        if self.positions is not None:
            if caches is not None:
                positions_BL = caches[0].positions(x_BLD.shape[1], x_BLD.device)
            x_BLD = self.positions(x_BLD, positions_BL)
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
        """Return places for each of `blocks()`, with the data that its core prepares from them.

        Blocks with the same class of core and the same visibility share the prepared data.
        """
        blocks = self.blocks()
        of = [places] * len(blocks)
        if places is None and self.embedding is None:
            return of  # ranks of `tp` have parts of the sequence from a pipeline
        shape_of = tokens_BL if places is None else places.positions_BL
        assert shape_of is not None
        batch, length = shape_of.shape
        made: dict[Any, Places] = {}
        for i, block in enumerate(blocks if ahead else self.layers):
            attention: Any = getattr(block, "attention", None)
            core = getattr(attention, "core", None)
            if not isinstance(core, PreparingCore):
                continue
            visibility = attention.visibility
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
        """Return a decoder with some of the blocks, for a pipeline's rank; it shares the modules.

        The embedding goes with the first block, norm and head with the last. Absent modules are
        None, and the forward pass skips them.

        Args:
            embedding: Whether to have the embedding, by default if the first block is there.
        """
        part: Any = object.__new__(type(self))
        nn.Module.__init__(part)
        first = 0 in layers if embedding is None else embedding
        last = len(self.layers) - 1 in layers
        part.embedding = self.embedding if first else None
        part.layers = nn.ModuleList()
        for i, block in enumerate(self.layers):
            part.layers.add_module(str(i), block if i in layers else None)
        part.positions = self.positions if 0 in layers else None
        part.norm = self.norm if last else None
        part.head = self.head if last else None
        part.multi_token = None
        part.max_sequence_length = self.max_sequence_length
        part.keeps_caches = self.keeps_caches
        return part

    def new_caches(self, *, capacity: int) -> list[LayerCache]:
        """Return empty caches for `capacity` positions, one for each layer."""
        return [LayerCache(capacity=capacity) for _ in self.layers]

    def shard_groups(self) -> list[list[nn.Module]]:
        """Return groups of modules whose parameters are gathered together, in forward order.

        A module in no group belongs to the whole model, such as a tied weight, which is used both
        first and last. If further tokens are predicted, embedding and head are separate groups,
        which are gathered for each use. The norm is then in no group, because the modules of one
        group must be used equally often.
        """
        blocks = [[block] for block in self.layers if block is not None]
        if self.multi_token is not None:
            blocks += [[depth] for depth in self.multi_token.depths]
        if self.embedding is not None and isinstance(self.head, TiedHead):
            return blocks
        first = [] if self.embedding is None else [[self.embedding]]
        first += [] if self.positions is None else [[self.positions]]
        last = [] if self.head is None else [[self.norm, self.head]]
        if self.multi_token is not None:
            last = [[self.head]]
        return [*first, *blocks, *last]


def _path(embedding: nn.Module, name: str) -> str:
    return f"embedding.{own_name(embedding, name)}"


def _table_size(embedding: Any) -> tuple[int | None, int | None]:
    """Return dim and vocab_size of an embedding that declares them or has one table."""
    table = getattr(embedding, "weight", None)
    rows, columns = (
        table.shape if isinstance(table, torch.Tensor) and table.ndim == 2 else (None,) * 2
    )
    return getattr(embedding, "dim", columns), getattr(embedding, "vocab_size", rows)
