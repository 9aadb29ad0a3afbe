"""Fiddlers that change the sizes of a model at hand, and all that follows from them.

Applied to the config of a recipe, each gives the config that the recipe makes with this size.
"""

import copy
import itertools
import math
from typing import Any

import fiddle as fdl
from fiddle import daglish

from nanigpt import tags
from nanigpt.config.compose.overrides import tagged
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.registry import fiddler
from nanigpt.config.sharing import Sharing
from nanigpt.errors import UsageError
from nanigpt.experiments import nodes
from nanigpt.experiments.sizes import require_depth
from nanigpt.models.rope import RotaryEmbedding
from nanigpt.training.trainer import Trainer


@fiddler
def depth(cfg: fdl.Config[Trainer], n: int, repeat: int | None = None) -> None:
    """Give the model n layers, and scale the initial weights that write to the residual stream.

    Further layers go on with the pattern of the layers, such as dense layers and then mixtures of
    experts, or every fourth layer without RoPE.

    Args:
        cfg: The run.
        n: Number of layers.
        repeat: Number of last layers that further ones repeat; None finds the pattern.
    """
    layers = getattr(cfg.model, "layers", None)
    if not isinstance(layers, (list, tuple)):
        raise UsageError("depth: expected a model with a list of layers, such as a Decoder")
    require_depth(n)
    if not tagged(cfg.model, tags.ResidualScale):
        raise UsageError(
            "depth: no initial weight of the model has the tag ResidualScale; add it where weights "
            "write to the residual stream: fdl.add_tag(initializer, 'scale', tags.ResidualScale)"
        )
    made = list(layers[:n])
    if n > len(layers):
        sharing = Sharing(cfg)
        period = _period(sharing, layers) if repeat is None else repeat
        if not 1 <= period <= len(layers):
            raise UsageError(f"depth(repeat={repeat}): expected 1 to {len(layers)}, the layers")
        further = itertools.cycle(layers[-period:])
        made += [copy_of(next(further), sharing) for _ in range(n - len(layers))]
    cfg.model.layers = made
    scale_residuals(cfg.model, len(layers), n)


@fiddler
def vocabulary(cfg: fdl.Config[Trainer], n: int) -> None:
    """Give embedding and head n rows."""
    if n < 1:
        raise UsageError(f"vocabulary({n}): expected at least 1 token")
    set_tag(cfg, tags.VocabSize, n)


@fiddler
def context(cfg: fdl.Config[Trainer], n: int) -> None:
    """Train with sequences of n tokens, and give the model as many positions if it has fewer."""
    if n < 1:
        raise UsageError(f"context({n}): expected at least 1 token")
    nodes.reach(cfg.model, n)
    model = {id(part) for part, _ in daglish.iterate(cfg.model)}
    lengths = [p for p in tagged(cfg, tags.SequenceLength) if id(p.node) not in model]
    if not lengths:
        raise UsageError("context: no argument of the data has the tag SequenceLength")
    for length in lengths:
        length.set(n)


def scale_residuals(model: fdl.Config[Any], before: int, after: int) -> None:
    """Change the scale of weights that write to the residual stream, as for another depth.

    Args:
        model: The model.
        before: Number of layers that the scales are made for.
        after: Number of layers that it has now.
    """
    if before == after:
        return
    for place in tagged(model, tags.ResidualScale):
        # Without rounding, the scale of one layer would be 0.9999... and not the recipe's.
        one = round(getattr(place.node, place.argument) * math.sqrt(2 * before), 9)
        place.set(nodes.residual_scale(after, one))


def copy_of(layer: fdl.Config[Any], sharing: Sharing) -> fdl.Config[Any]:
    """Return a copy of a layer that shares with it what layers share, such as the RoPE table."""
    own = sharing.internal(layer)
    shared = [
        part
        for part, _ in daglish.iterate(layer)
        if isinstance(part, fdl.Buildable)
        and (id(part) not in own or fdl.get_callable(part) is RotaryEmbedding)
    ]
    return copy.deepcopy(layer, {id(part): part for part in shared})


def _period(sharing: Sharing, layers: Any) -> int:
    """Return the number of last layers that further layers repeat.

    The pattern is a number of first layers and a period. The shortest one that explains the
    layers wins, and it must have repeated a layer. Where none has, the layers are one period if
    kinds of layers alternate in them.

    Raises:
        UsageError: Layers of several kinds show no pattern.
    """
    kinds = _kinds(sharing, layers)
    n = len(kinds)
    patterns = [
        (first + period, first, period)
        for first in range(n)
        for period in range(1, n - first + 1)
        if all(kinds[i] == kinds[i + period] for i in range(first, n - period))
    ]
    length, _, period = min(patterns)
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    alternate = changes >= len(set(kinds))  # a kind comes back after another one
    if n > 1 and length == n and not alternate:
        raise UsageError(
            f"depth: {n} layers of {len(set(kinds))} kinds show no pattern to go on with; say how "
            "many last layers to repeat, as in depth(12, repeat=1)"
        )
    return period


def _kinds(sharing: Sharing, layers: Any) -> list[int]:
    """Return a number for each layer; layers that can replace each other have the same one."""
    keys: list[Any] = []
    kinds = []
    for layer in layers:
        key = sharing.key(layer)
        if key not in keys:
            keys.append(key)
        kinds.append(keys.index(key))
    return kinds
