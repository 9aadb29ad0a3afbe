"""Read their files into our weights.

Headers are enough to check that a folder fits a model. Then each rank reads only the part of every
tensor that its shard needs. No rank ever holds a whole tensor to keep a part of it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from nanigpt.errors import UsageError
from nanigpt.files import plain_name
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.config_json import normalized, part_of, read_object
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.fields import differences
from nanigpt.models.huggingface.mapping import Family, Link, named_weights, weights
from nanigpt.models.huggingface.quantized import FLOATS, Quantization, quantization
from nanigpt.models.huggingface.views import Region, Stored, View
from nanigpt.words import counted, one_of, shortened

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_SHOWN = 20
_ROWS = 4096  # compared at a time


class Folder:
    """The config.json and weights in a folder that `save_pretrained` of transformers wrote.

    Raises:
        UsageError: A file is missing or damaged, or the weights have an unknown quantization.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise UsageError(f"{self.path}: no such folder; expected config.json and safetensors")
        self.config = read_object(self.path / "config.json")
        handles = {name: self._open(name) for name in self._files()}
        self._holder = {name: f for f in handles.values() for name in f.keys()}  # noqa: SIM118
        self._prefix = ""
        with self._within():
            self._quantization = quantization(self.config.get("quantization_config"))

    def narrow(self, family: Family) -> None:
        """Keep only the part that a family knows, if the folder has the whole model."""
        whole = family.whole
        if whole is not None and self.config.get("model_type") == whole.model_type:
            with self._within():
                self.config = part_of(self.config, family)
            self._prefix = whole.prefix

    def normalized(self, family: Family) -> dict[str, Any] | None:
        """Return the `normalized` config.json, or None if it is another family's."""
        if self.config.get("model_type") != family.model_type:
            return None
        with self._within():
            return normalized(self.config, family)

    @contextlib.contextmanager
    def _within(self) -> Iterator[None]:
        """Name config.json in errors about it."""
        try:
            yield
        except UsageError as error:
            raise error.within(str(self.path / "config.json")) from error

    @cached_property
    def names(self) -> set[str]:
        """Return the names of weights; a quantized weight has several tensors."""
        q = self._quantization
        return self._tensors if q is None else q.weights(self._tensors)

    @cached_property
    def _tensors(self) -> set[str]:
        return {n.removeprefix(self._prefix) for n in self._holder if n.startswith(self._prefix)}

    def tensor(self, name: str) -> View:
        """Return a view of a weight, dequantized where necessary."""
        quantized = self._quantized(name)
        if quantized is None:
            return Stored(self._slice(name))
        q, values, scales = quantized
        try:
            return q.view(Stored(self._slice(values)), Stored(self._slice(scales)))
        except UsageError as error:
            raise error.within(f"{self.path}: {name}") from error

    def wrong_dtypes(self, name: str) -> Iterator[str]:
        """Yield a message for each of a weight's tensors that has an unexpected dtype."""
        types: dict[str, Sequence[str]] = {name: FLOATS}
        quantized = self._quantized(name)
        if quantized is not None:
            q, values, scales = quantized
            types = {values: q.value_types, scales: q.scale_types}
        for part, expected in types.items():
            dtype = self._slice(part).get_dtype()
            if dtype not in expected:
                yield f"{part} has dtype {dtype}, expected {one_of(expected)}"

    def _quantized(self, name: str) -> tuple[Quantization, str, str] | None:
        """Return a weight's quantization and the names of its tensors, or None."""
        q = self._quantization
        if q is None or not {name + q.values, name + q.scales} <= self._tensors:
            return None
        return q, name + q.values, name + q.scales

    def _slice(self, name: str) -> Any:
        return self._holder[self._prefix + name].get_slice(self._prefix + name)

    def _files(self) -> list[str]:
        if not (self.path / INDEX).is_file():
            return [SINGLE]
        index = read_object(self.path / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise UsageError(f"{self.path / INDEX}: expected a weight_map")
        try:
            return sorted({plain_name(name) for name in index["weight_map"].values()})
        except UsageError as error:
            raise error.within(str(self.path / INDEX)) from error

    def _open(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        if not (self.path / name).is_file():
            other = "; save it as safetensors" if list(self.path.glob("*.bin")) else ""
            raise UsageError(f"{self.path} has no {name}{other}")
        try:
            return safe_open(self.path / name, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UsageError(f"{self.path / name} cannot be read ({error})") from error


class Pretrained:
    """The weights of a model in a folder of Hugging Face; the headers of the files are checked.

    Args:
        path: A folder with config.json and model.safetensors, or several files and their index.
        model: The whole model, before it is divided. It may be on meta.

    Raises:
        UsageError: The folder has other weights. The message lists tensors that are missing,
            unexpected, or have another shape.
    """

    def __init__(self, path: str | Path, model: Decoder):
        family = family_of(model)
        self._folder = Folder(path)
        self._folder.narrow(family)
        self._shapes = {name: tuple(weight.shape) for name, weight in weights(model).items()}
        self._fields = family.fields(model)
        links, _ = family.links(self._shapes)
        self._links = {name: link for link in links for name in link.ours}
        found = list(_problems(self._folder, family, model, links, self._shapes))
        if found:
            lines = "".join(f"\n  - {line}" for line in shortened(found, _SHOWN))
            raise UsageError(
                f"{self._folder.path} does not have the weights of this model, "
                f"{counted(len(found), 'problem')}:{lines}"
            )

    @torch.no_grad()
    def load(self, part: nn.Module) -> None:
        """Read the weights of the model, or of this rank's part of it, in place.

        Args:
            part: A module whose weights have the names of the whole model. Sharded weights are
                DTensors.
        """
        for name, weight in weights(part).items():
            link = self._links[name]
            shapes = [self._shapes[n] for n in link.ours]
            view = link.view(name, shapes, self._folder.tensor, self._fields)
            local = getattr(weight, "_local_tensor", weight)
            if local.numel():
                local.copy_(view.read(_region(weight)))


def _problems(
    folder: Folder,
    family: Family,
    model: Decoder,
    links: list[Link],
    shapes: dict[str, tuple[int, ...]],
) -> Iterator[str]:
    described = folder.normalized(family)
    if described is None:
        kind = folder.config.get("model_type")
        yield f"config.json has model_type={kind!r}, expected {family.model_type!r}"
    else:
        yield from differences(family.fields(model), described)
    aliases = _aliases(family, model)
    expected: set[str] = set(aliases)
    for link in links:
        wanted = link.export(
            [torch.empty(shapes[n], device="meta") for n in link.ours], family.fields(model)
        )
        expected |= wanted.keys()
        for name, tensor in wanted.items():
            if name not in folder.names:
                yield f"missing {name} {list(tensor.shape)}, for {' and '.join(link.ours)}"
                continue
            shape = folder.tensor(name).shape
            if shape != tuple(tensor.shape):
                yield f"{name} is {list(shape)}, expected {list(tensor.shape)}"
            yield from folder.wrong_dtypes(name)
    for name in sorted(folder.names - expected):
        if not family.ignores(name, described):
            yield f"unexpected {name} {list(folder.tensor(name).shape)}"
    for name, original in aliases.items():
        if {name, original} <= folder.names and not _same(folder, name, original):
            yield f"{name} differs from {original}, but the model has one weight for both"


def _aliases(family: Family, model: Decoder) -> dict[str, str]:
    """Map their names for second names of our weights to their names for the first names.

    Files may have tensors under both names.
    """
    first = {weight: name for name, weight in weights(model).items()}
    pairs = [(name, first[w]) for name, w in named_weights(model) if name != first[w]]
    found = {}
    for name, original in pairs:
        for link in family.links([name])[0]:
            found[link.theirs] = family.links([original])[0][0].theirs
    return found


def _same(folder: Folder, a: str, b: str) -> bool:
    one, other = folder.tensor(a), folder.tensor(b)
    if one.shape != other.shape:
        return False
    rows, *rest = one.shape
    for start in range(0, rows, _ROWS):
        region = (slice(start, min(start + _ROWS, rows)), *(slice(0, n) for n in rest))
        if not torch.equal(one.read(region), other.read(region)):
            return False
    return True


def _region(weight: torch.Tensor) -> Region:
    """Return the region of a weight that this rank holds."""
    if not isinstance(weight, DTensor):
        return tuple(slice(0, size) for size in weight.shape)
    # Distributed checkpoints use the same protocol; a DTensor is one chunk.
    [chunk] = weight.__create_chunk_list__()
    return tuple(
        slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True)
    )
