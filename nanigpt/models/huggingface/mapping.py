"""What a family of models consists of: rules between the tensors of Hugging Face and ours.

A rule says which of our weights hold the numbers of which of their tensors, and how those are
rearranged. Weights are parameters, and buffers that are not derived from a model's arguments. Both
directions follow from a rule: `Link.export` makes their tensors of ours, `Link.view` reads one of
ours from theirs, or a part of it.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nanigpt.models.decoder import Decoder
from nanigpt.models.dropout import Dropout
from nanigpt.models.huggingface.views import Part, Reordered, Stacked, Transposed, View

_PLACE = re.compile(r"{(\w+)}")
_MULTI_TOKEN = "multi_token."


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, each once, under its first name, but for those of
    `left_out`."""
    first = {tensor: name for name, tensor in reversed(named_weights(model))}
    return {name: tensor for name, tensor in named_weights(model) if first[tensor] == name}


def named_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """The same, under every name, in the order of the model."""
    every = model.state_dict(keep_vars=True).items()
    counters = {f"{n}.rows" for n, module in model.named_modules() if isinstance(module, Dropout)}
    return [
        (name, tensor)
        for name, tensor in every
        if not name.startswith(_MULTI_TOKEN) and name not in counters
    ]


def left_out(model: nn.Module) -> list[str]:
    """Names of weights that neither come from files nor go into them: what predicts further
    tokens helps training, and is no part of the models of transformers."""
    return [name for name in model.state_dict() if name.startswith(_MULTI_TOKEN)]


@dataclass(frozen=True)
class RotaryPairs:
    """Rows of queries or keys whose RoPE pairs are neighbours in their layout: (0, 1), (2, 3), ...

    In ours feature i is paired with feature i + K/2. Most published weights are that way as well
    and need no reordering.

    Args:
        head_dim: the field of config.json that has the rows of one head; None: all are one head.
        rotated: the field that has how many rows are rotated, the last of each head.
    """

    head_dim: str | None
    rotated: str

    def order(self, rows: int, fields: dict[str, Any]) -> torch.Tensor:
        """For each of our rows the number of theirs."""
        head_dim = rows if self.head_dim is None else fields[self.head_dim]
        kept = head_dim - fields[self.rotated]
        pairs = torch.arange(kept, head_dim).unflatten(0, (-1, 2))
        head = torch.cat([torch.arange(kept), pairs.T.flatten()])
        return (torch.arange(0, rows, head_dim).unsqueeze(1) + head).flatten()


@dataclass(frozen=True)
class Rule:
    """Tensors that hold the same numbers under our names and under theirs.

    A place such as `{i}` in a name stands for anything between two dots, the same on both sides.

    Args:
        ours: a name, or several whose tensors are joined to one of theirs.
        theirs: a name. A place that ours lacks numbers the items of our first dim, each a tensor of
            its own there: experts.
        along: the dim of ours in which several are joined.
        alternating: joined items take turns (0 of the first, 0 of the second, 1 of the first, ...)
            and do not follow one another.
        rotary: their layout of RoPE, where it is not ours.
        transposed: theirs have the last two dims exchanged.
    """

    ours: str | tuple[str, ...]
    theirs: str
    along: int = 0
    alternating: bool = False
    rotary: RotaryPairs | None = None
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def item(self) -> str | None:
        """The place that numbers items of our first dim."""
        inside = set(_PLACE.findall(self.names[0]))
        return next((place for place in _PLACE.findall(self.theirs) if place not in inside), None)


@dataclass(frozen=True)
class Link:
    """A rule at certain places: of one layer, say.

    Args:
        ours: full names of our weights.
        theirs: full name of theirs; a place that numbers items is left.
    """

    rule: Rule
    ours: tuple[str, ...]
    theirs: str

    def export(
        self, tensors: Sequence[torch.Tensor], fields: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Their tensors by name, of ours in the order of `ours`."""
        rule = self.rule
        if rule.alternating:
            whole = torch.stack(tuple(tensors), dim=rule.along + 1)
            whole = whole.flatten(rule.along, rule.along + 1)
        else:
            whole = torch.cat(tuple(tensors), dim=rule.along) if tensors[1:] else tensors[0]
        if rule.rotary is not None:
            order = rule.rotary.order(whole.shape[0], fields)
            whole = whole[order.argsort().to(whole.device)]
        if rule.transposed:
            whole = whole.transpose(-1, -2)
        if rule.item is None:
            return {self.theirs: whole}
        return {self._item(i): item for i, item in enumerate(whole)}

    def view(
        self,
        name: str,
        shapes: Sequence[tuple[int, ...]],
        stored: Callable[[str], View],
        fields: dict[str, Any],
    ) -> View:
        """One of ours, made of theirs.

        Args:
            shapes: of all of `ours`.
            stored: gives their tensors by name.
        """
        rule, at = self.rule, self.ours.index(name)
        if rule.item is None:
            view = stored(self.theirs)
        else:
            view = Stacked([stored(self._item(i)) for i in range(shapes[0][0])])
        if rule.transposed:
            view = Transposed(view)
        if rule.rotary is not None:
            view = Reordered(view, rule.rotary.order(view.shape[0], fields))
        if len(self.ours) == 1:
            return view
        sizes = [shape[rule.along] for shape in shapes]
        if rule.alternating:
            return Part(view, rule.along, at, sizes[at], step=len(sizes))
        return Part(view, rule.along, sum(sizes[:at]), sizes[at])

    def _item(self, number: int) -> str:
        return self.theirs.replace(f"{{{self.rule.item}}}", str(number))


@dataclass(frozen=True)
class Whole:
    """A model of which a family's is a part, as one that also sees has a text model.

    Args:
        model_type: as in config.json.
        field: of config.json, that describes the part.
        prefix: of names of the part's tensors.
    """

    model_type: str
    field: str
    prefix: str


@dataclass(frozen=True)
class Family:
    """Models that `transformers` has under one name.

    Args:
        model_type: as in config.json.
        architecture: the class there.
        rules: for every weight that such a model can have; the first that fits a name counts.
        fields: what config.json says of a model, by which `transformers` builds an equal one;
            raises UsageError where no such file can say it.
        normalized: a config.json in the form of `fields`, with what it may leave out, whichever
            version of transformers wrote it.
        ignored: their tensors without a counterpart, such as buffers that are derived.
        further: the field that has how many layers there are behind those of the model, which
            predict further tokens.
        whole: a model of which such models may be read as a part.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    fields: Callable[[Decoder], dict[str, Any]]
    normalized: Callable[[dict[str, Any]], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    further: str | None = None
    whole: Whole | None = None

    def __post_init__(self):
        for a, b in itertools.combinations(self.rules, 2):
            if a.theirs == b.theirs or set(a.names) & set(b.names):
                raise ValueError(f"{a} and {b}: expected each name in one rule")

    def links(self, names: Iterable[str]) -> tuple[list[Link], list[str]]:
        """Links for our weights, in their order, and the names that no rule knows."""
        links: dict[tuple[str, ...], Link] = {}
        unknown = []
        for name in names:
            link = next(filter(None, (_link(rule, name) for rule in self.rules)), None)
            if link is None:
                unknown.append(name)
            else:
                links[link.ours] = link
        return list(links.values()), unknown

    def ignores(self, theirs: str, config: dict[str, Any] | None) -> bool:
        """Whether a tensor of theirs is of no matter.

        Args:
            config: the `normalized` one; None where it is another family's.
        """
        layer = re.match(r"model\.layers\.(\d+)\.", theirs)
        if layer and self.further is not None and config is not None:
            n = config["num_hidden_layers"]
            if n <= int(layer[1]) < n + config[self.further]:
                return True
        return any(_match(pattern, theirs) is not None for pattern in self.ignored)


def _link(rule: Rule, name: str) -> Link | None:
    for pattern in rule.names:
        places = _match(pattern, name)
        if places is not None:
            return Link(
                rule,
                tuple(_filled(ours, places) for ours in rule.names),
                _filled(rule.theirs, places),
            )
    return None


def _match(pattern: str, name: str) -> dict[str, str] | None:
    parts = _PLACE.split(pattern)  # text and places take turns
    expression = "".join(
        f"(?P<{part}>[^.]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    found = re.fullmatch(expression, name)
    return None if found is None else found.groupdict()


def _filled(pattern: str, places: dict[str, str]) -> str:
    return _PLACE.sub(lambda place: places.get(place[1], place[0]), pattern)
