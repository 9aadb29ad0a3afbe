"""The parts of a family of models: rules that map the tensors of Hugging Face to ours.

A rule says which of our weights hold the numbers of which of their tensors, and how the numbers are
rearranged. Weights are parameters, and buffers that do not follow from a model's arguments. A rule
gives both directions: `Link.export` makes their tensors from ours, and `Link.view` reads one of
ours, or a part of it, from theirs.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nanigpt.models.decoder import Decoder
from nanigpt.models.dropout import Dropout
from nanigpt.models.huggingface.views import Part, Reordered, Stacked, Transposed, View

_PLACE = re.compile(r"{(\w+)}")
_MULTI_TOKEN = "multi_token."


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and persistent buffers by name, without those of `left_out`.

    Each is there once, under its first name.
    """
    first = {tensor: name for name, tensor in reversed(named_weights(model))}
    return {name: tensor for name, tensor in named_weights(model) if first[tensor] == name}


def named_weights(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Return the same weights under every name that they have, in the order of the model."""
    every = model.state_dict(keep_vars=True).items()
    counters = {f"{n}.rows" for n, module in model.named_modules() if isinstance(module, Dropout)}
    return [
        (name, tensor)
        for name, tensor in every
        if not name.startswith(_MULTI_TOKEN) and name not in counters
    ]


def left_out(model: nn.Module) -> list[str]:
    """Return names of weights that files do not have: those that predict further tokens.

    They help training, and the models of transformers have no such part.
    """
    return [name for name in model.state_dict() if name.startswith(_MULTI_TOKEN)]


@dataclass(frozen=True)
class RotaryPairs:
    """Rows of queries or keys whose RoPE pairs are neighbours in their layout: (0, 1), (2, 3), ...

    Our layout pairs feature i with feature i + K/2. Most published weights have that layout as well
    and need no reordering.

    Args:
        head_dim: Field of config.json with the number of rows of one head. None means that all
            rows belong to one head.
        rotated: Field with the number of rotated rows, which are the last of each head.
    """

    head_dim: str | None
    rotated: str

    def order(self, rows: int, fields: dict[str, Any]) -> torch.Tensor:
        """Return, for each of our rows, the index of theirs."""
        head_dim = rows if self.head_dim is None else fields[self.head_dim]
        kept = head_dim - fields[self.rotated]
        pairs = torch.arange(kept, head_dim).unflatten(0, (-1, 2))
        head = torch.cat([torch.arange(kept), pairs.T.flatten()])
        return (torch.arange(0, rows, head_dim).unsqueeze(1) + head).flatten()


@dataclass(frozen=True)
class Rule:
    """Tensors that hold the same numbers under our names and under theirs.

    A placeholder such as `{i}` in a name matches any text between two dots. It has the same value
    on both sides.

    Args:
        ours: One name, or several whose tensors are joined into one of theirs.
        theirs: One name. A placeholder that `ours` lacks numbers the items of our first dim
            (experts), each of which is a tensor of its own in their files.
        along: Dim along which several of our tensors are joined.
        alternating: Whether joined items alternate (item 0 of the first, item 0 of the second, item
            1 of the first, ...) instead of following one another.
        rotary: Their layout of RoPE, if it differs from ours.
        transposed: Whether their tensors have the last two dims exchanged.
    """

    ours: str | tuple[str, ...]
    theirs: str
    along: int = 0
    alternating: bool = False
    rotary: RotaryPairs | None = None
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return our names, as a tuple even if there is only one."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def item(self) -> str | None:
        """Return the placeholder that numbers items of our first dim, or None."""
        inside = set(_PLACE.findall(self.names[0]))
        return next((place for place in _PLACE.findall(self.theirs) if place not in inside), None)


@dataclass(frozen=True)
class Link:
    """A rule with its placeholders filled in, for example for one layer.

    Args:
        rule: The rule.
        ours: Full names of our weights.
        theirs: Full name of their tensor. A placeholder that numbers items stays.
    """

    rule: Rule
    ours: tuple[str, ...]
    theirs: str

    def export(
        self, tensors: Sequence[torch.Tensor], fields: dict[str, Any]
    ) -> dict[str, torch.Tensor]:
        """Return their tensors by name, made from our tensors in the order of `ours`."""
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
        """Return a view of one of our weights, made from their tensors.

        Args:
            name: Our name of the weight.
            shapes: Shapes of all of `ours`.
            stored: Function that returns one of their tensors, given its name.
            fields: Fields of config.json.
        """
        rule, at = self.rule, self.ours.index(name)
        view: View
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
    """A model that contains a family's model, as a multimodal model contains a text model.

    Args:
        model_type: Value of `model_type` in config.json.
        field: Field of config.json that describes the part.
        prefix: Prefix of the names of the part's tensors.
    """

    model_type: str
    field: str
    prefix: str


@dataclass(frozen=True)
class Family:
    """Models that `transformers` has under one name.

    Args:
        model_type: Value of `model_type` in config.json.
        architecture: Name of the class in transformers.
        rules: Rules for every weight that such a model can have. The first that matches a name is
            used.
        fields: Function that returns the fields of config.json from which `transformers` builds an
            equal model. It raises UsageError if no such file can describe the model.
        normalized: Function that returns a config.json in the form of `fields`, with defaults
            filled in, whichever version of transformers wrote it.
        ignored: Names of their tensors without a counterpart, such as buffers that can be computed.
        further: Field with the number of extra layers, after those of the model, that predict
            further tokens.
        whole: A model that contains such a model as a part.
        second_names: Fields of config.json by other names, which files may have as well.
    """

    model_type: str
    architecture: str
    rules: tuple[Rule, ...]
    fields: Callable[[Decoder], dict[str, Any]]
    normalized: Callable[[dict[str, Any]], dict[str, Any]]
    ignored: tuple[str, ...] = ()
    further: str | None = None
    whole: Whole | None = None
    second_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for a, b in itertools.combinations(self.rules, 2):
            if a.theirs == b.theirs or set(a.names) & set(b.names):
                raise ValueError(f"{a} and {b}: expected each name in one rule")

    def links(self, names: Iterable[str]) -> tuple[list[Link], list[str]]:
        """Return links for our weights, in their order, and the names that no rule matches."""
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
        """Return whether one of their tensors needs no counterpart.

        Args:
            theirs: Name of the tensor.
            config: The `normalized` config.json, or None if it is another family's.
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
    parts = _PLACE.split(pattern)  # text and placeholders alternate
    expression = "".join(
        f"(?P<{part}>[^.]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    found = re.fullmatch(expression, name)
    return None if found is None else found.groupdict()


def _filled(pattern: str, places: dict[str, str]) -> str:
    return _PLACE.sub(lambda place: places.get(place[1], place[0]), pattern)
