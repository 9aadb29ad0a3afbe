"""Our parameters to their files.

Tensors pass through one parameter at a time: files are written in the order of the model, headers
first, for which shapes are enough.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from nanigpt.errors import UsageError
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.mapping import Link
from nanigpt.models.huggingface.reader import INDEX, SINGLE

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}

Shapes = dict[str, tuple[int, ...]]


def check_vacant(path: str | Path) -> None:
    """Raises UsageError where something is at `path` already."""
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UsageError(f"{path} is there already; expected a new or an empty folder")


@torch.no_grad()
def save_pretrained(
    model: Decoder,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = 5 * 10**9,
    end_id: int | None = None,
    texts: Mapping[str, str] | None = None,
    writes: bool = True,
) -> list[Path]:
    """Writes what `transformers.AutoModelForCausalLM.from_pretrained` reads; returns the files.

    The folder appears under its name when it is whole. Of a sharded model all ranks call this
    together; a model that is divided into a pipeline's stages is not one that this can write.

    Args:
        dtype: of the weights in the files, float32 or bfloat16.
        max_shard_bytes: a file ends before it would be larger, unless one tensor is.
        end_id: the token that ends documents, and that texts begin with; None if there is none.
        texts: further files by name, such as a tokenizer's.
        writes: whether this rank does; the others give their shards.

    Raises:
        UsageError: the folder is not empty or cannot be written, or transformers has no such model.
    """
    path = Path(path)
    check_vacant(path)
    family = family_of(model)
    fields = family.fields(model)
    parameters = dict(model.named_parameters())
    links, _ = family.links(parameters)
    tensors = _exported(links, parameters, fields)
    if not writes:
        for _ in tensors:  # each gathers
            pass
        return []
    tokens = {"bos_token_id": end_id, "eos_token_id": end_id}
    described = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **fields,
        **tokens,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    shapes = _shapes(links, parameters, fields)
    shards = _shards(shapes, dtype.itemsize, max_shard_bytes)
    temporary = path.with_name(f".{path.name}.incomplete")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, text in {
            **(texts or {}),
            "config.json": _json(described),
            "generation_config.json": _json(tokens),
        }.items():
            (temporary / name).write_text(text)
        if len(shards) > 1:
            (temporary / INDEX).write_text(_json(_index(shards, shapes, dtype)))
        for name, names in shards.items():
            with open(temporary / name, "wb") as stream:
                _write(stream, {n: shapes[n] for n in names}, tensors, dtype)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path.iterdir())


def _exported(
    links: Iterable[Link], parameters: Mapping[str, torch.Tensor], fields: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for link in links:
        yield from link.export([_whole(parameters[n]) for n in link.ours], fields).items()


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def _shapes(
    links: Iterable[Link], parameters: Mapping[str, torch.Tensor], fields: dict[str, Any]
) -> Shapes:
    meta = {name: torch.empty(p.shape, device="meta") for name, p in parameters.items()}
    return {name: tuple(tensor.shape) for name, tensor in _exported(links, meta, fields)}


def _shards(shapes: Shapes, itemsize: int, max_bytes: int) -> dict[str, list[str]]:
    """Names of tensors by file."""
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name, shape in shapes.items():
        size = prod(shape) * itemsize
        if size > room and groups[-1]:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    n = len(groups)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": g for i, g in enumerate(groups, start=1)}


def _index(shards: dict[str, list[str]], shapes: Shapes, dtype: torch.dtype) -> dict[str, Any]:
    elements = sum(map(prod, shapes.values()))
    return {
        "metadata": {"total_parameters": elements, "total_size": elements * dtype.itemsize},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }


def _write(
    stream: BinaryIO,
    shapes: Shapes,
    tensors: Iterator[tuple[str, torch.Tensor]],
    dtype: torch.dtype,
) -> None:
    """One safetensors file: length of the header, header, numbers; takes its tensors of `tensors`.

    The library's own `save_file` wants all tensors of a file at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in islice(tensors, len(shapes)):
        assert tuple(tensor.shape) == shapes[name], name
        flat = tensor.to("cpu", dtype).contiguous().flatten()
        stream.write(memoryview(flat.view(torch.uint8).numpy()))


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
