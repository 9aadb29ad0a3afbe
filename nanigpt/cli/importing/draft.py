"""A recipe in the making: the model, the run around it, edits of both, and its source."""

import keyword
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanigpt.cli.importing.keys import Keys

_WIDTH = 100

_PLACES = {
    "CrossEntropy": "nanigpt.tasks.cross_entropy",
    "FlexAttention": "nanigpt.models.attention_core",
    "Linear": "nanigpt.optim.schedule",
    "WarmupStableDecay": "nanigpt.optim.schedule",
    "Cosine": "nanigpt.optim.schedule",
    "HuggingFaceTokenizer": "nanigpt.data.tokenizer",
    "VarLen": "nanigpt.models.varlen_attention",
    "compile": "nanigpt.fiddlers.speed",
    "float8": "nanigpt.fiddlers.precision",
    "parameter_group": "nanigpt.fiddlers.optimizer",
    "tensorboard": "nanigpt.fiddlers.tracking",
    "wandb": "nanigpt.fiddlers.tracking",
}
_ALWAYS = {
    "recipe": "nanigpt.config.registry",
    "llama3_model": "nanigpt.experiments.llama3",
    "pretraining": "nanigpt.experiments.pretraining",
    "Trainer": "nanigpt.training.trainer",
}


@dataclass(frozen=True)
class Source:
    """Text of Python, where another value would be shown by `repr`."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Node:
    """The config of a component, as the source of its arguments."""

    given: tuple[str, ...]

    def __repr__(self) -> str:
        return f"fdl.Config({', '.join(self.given)})"


@dataclass
class Draft:
    """A recipe in the making.

    Attributes:
        program: Name of the program that the file belongs to.
        file: The file.
        model: Arguments of `llama3_model`.
        run: Arguments of `pretraining`.
        lines: Edits of the run.
        notes: Sentences about values that the file leaves open.
    """

    program: str
    file: Path
    model: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _used: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        """Name of the recipe, which no recipe of nanigpt has."""
        stem = re.sub("[^0-9A-Za-z_]+", "_", self.file.stem).strip("_") or "recipe"
        name = f"{self.program}_{stem}"
        return f"{name}_" if keyword.iskeyword(name) else name

    def set(self, path: str, value: Any) -> None:
        """Set a value of the run, such as `optimizer.eps`."""
        self.lines += _assignment(f"cfg.{path} = ", value)

    def node(self, path: str, name: str, /, **arguments: Any) -> None:
        """Set a component of the run, by the name of its class."""
        self.set(path, self.config(name, **arguments))

    def config(self, name: str, /, **arguments: Any) -> "Node":
        """Return the source of a component's config."""
        self._used.add(name)
        return Node((name, *_named(arguments)))

    def decay_everything(self, decay: float) -> None:
        """Decay all parameters, as `torch.optim.AdamW` does without groups."""
        self.set("optimizer.weight_decay", decay)
        if decay:
            self.lines.append(f"# {self.program} decays gains and biases, too.")
            self.call("parameter_group", "vectors", weight_decay=decay)

    def call(self, name: str, /, *positional: Any, **arguments: Any) -> None:
        """Call a fiddler on the run."""
        self._used.add(name)
        given = ["cfg", *map(_python, positional), *_named(arguments)]
        self.lines.append(f"{name}({', '.join(given)})")

    def each_layer(self, argument: str, value: Any, *, layers: str = "") -> None:
        """Set an argument of all layers, or of those of a slice such as `[1::2]`."""
        self.lines.append(f"for layer in cfg.model.layers{layers}:")
        self.lines += [f"    {line}" for line in _assignment(f"layer.{argument} = ", value)]

    def source(self, keys: Keys) -> str:
        """Return the recipe as a Python file, which names the keys that were not carried."""
        body = [
            *_call("model = llama3_model", self.model),
            *_call("cfg = pretraining", self.run, first="model"),
            *self.lines,
            "return cfg",
        ]
        return "\n".join(
            [
                f'"""A run of {self.program} as a recipe, written by `nanigpt import-config`."""',
                "",
                *self._comments(keys),
                "",
                *self._imports(),
                "",
                "",
                "@recipe",
                f"def {self.name}() -> fdl.Config[Trainer]:",
                f'    """Train a run that was configured for {self.program}."""',
                *(f"    {line}" for line in body),
                "",
            ]
        )

    def report(self, keys: Keys) -> list[str]:
        """Return a line for each key that was not carried, and each value left open."""
        lines = [f"{_plain(k)} = {_shown(v)}: {reason}" for k, v, reason in keys.left]
        return [*lines, *self.notes]

    def _comments(self, keys: Keys) -> list[str]:
        told = [f"From {_plain(self.file.name)}."]
        report = self.report(keys)
        if report:
            told += ["", "Not carried, or open:"]
        for line in report:
            told += textwrap.wrap(line, _WIDTH - 8, initial_indent="  ", subsequent_indent="      ")
        return [f"# {line}".rstrip() for line in told]

    def _imports(self) -> list[str]:
        places: dict[str, list[str]] = {}
        for name, module in {**_ALWAYS, **{n: _PLACES[n] for n in self._used}}.items():
            places.setdefault(module, []).append(name)
        ours = [f"from {module} import {', '.join(sorted(places[module]))}" for module in places]
        torch = ["import torch"] if any("torch." in repr(v) for v in self.model.values()) else []
        return ["import fiddle as fdl", *torch, "", *sorted(ours)]


def _named(arguments: dict[str, Any]) -> list[str]:
    return [f"{name}={_python(value)}" for name, value in arguments.items()]


def _python(value: Any) -> str:
    """Return a value as a formatter writes it, with double quotes."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))})"
    text = repr(value)
    if isinstance(value, str) and text[0] == "'" and '"' not in text:
        return f'"{text[1:-1]}"'
    return text


def _call(start: str, arguments: dict[str, Any], first: str | None = None) -> list[str]:
    given = [*([first] if first else []), *_named(arguments)]
    line = f"{start}({', '.join(given)})"
    if len(line) + 4 <= _WIDTH:
        return [line]
    return [f"{start}(", *(f"    {argument}," for argument in given), ")"]


def _assignment(start: str, value: Any) -> list[str]:
    """Return an assignment; a config that is too long for a line has one for each argument."""
    line = f"{start}{_python(value)}"
    if len(line) + 8 <= _WIDTH or not isinstance(value, Node):
        return [line]
    return [f"{start}fdl.Config(", *(f"    {argument}," for argument in value.given), ")"]


def _plain(text: str) -> str:
    """Return a text of a file without characters that would end a comment."""
    return ascii(text)[1:-1]


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
