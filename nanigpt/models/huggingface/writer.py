"""Write our weights into their files.

One weight at a time is in memory: files are written in the order of the model, and headers, which
come first, need only shapes.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from nanigpt.errors import UsageError
from nanigpt.files import plain_name
from nanigpt.models.decoder import Decoder
from nanigpt.models.huggingface.families import family_of
from nanigpt.models.huggingface.mapping import Link, weights
from nanigpt.models.huggingface.reader import INDEX, SINGLE

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}

Outline = dict[str, torch.Tensor]  # the tensors of files by name, on meta


def check_vacant(path: str | Path) -> None:
    """Raise UsageError if `path` is a file or a folder that is not empty."""
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
    """Write a folder that `transformers.AutoModelForCausalLM.from_pretrained` can read.

    The folder appears under its name when it is complete. All ranks of a sharded model call this
    function together. It cannot write a model that is divided into stages of a pipeline.

    Args:
        model: The model, sharded or not.
        path: The new folder.
        dtype: Dtype of the parameters in the files, float32 or bfloat16. Buffers keep theirs.
        max_shard_bytes: Largest size of a file, unless a single tensor is larger.
        end_id: The token that ends documents and begins texts, or None.
        texts: Further files by name, such as those of a tokenizer.
        writes: Whether this rank writes. The other ranks only contribute their shards.

    Returns:
        The files.

    Raises:
        UsageError: The folder is not empty or cannot be written, a name in `texts` leads out of it,
            or transformers has no such model.
    """
    path = Path(path)
    check_vacant(path)
    for name in texts or {}:
        plain_name(name)
    family = family_of(model)
    fields = family.fields(model)
    ours = weights(model)
    links, _ = family.links(ours)
    tensors = _exported(links, ours, fields)
    if not writes:
        for _ in tensors:  # gathers one weight at a time
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
    # A router's float32 bias is a sum of tiny steps, which bfloat16 cannot hold.
    meta = {
        name: torch.empty(
            weight.shape,
            dtype=dtype if isinstance(weight, nn.Parameter) else weight.dtype,
            device="meta",
        )
        for name, weight in ours.items()
    }
    outline = dict(_exported(links, meta, fields))
    shards = _shards(outline, max_shard_bytes)
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
            (temporary / INDEX).write_text(_json(_index(shards, outline)))
        for name, names in shards.items():
            with open(temporary / name, "wb") as stream:
                _write(stream, {n: outline[n] for n in names}, tensors)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path.iterdir())


def _exported(
    links: Iterable[Link], ours: Mapping[str, torch.Tensor], fields: dict[str, Any]
) -> Iterator[tuple[str, torch.Tensor]]:
    for link in links:
        yield from link.export([_whole(ours[name]) for name in link.ours], fields).items()


def _whole(weight: torch.Tensor) -> torch.Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def _shards(outline: Outline, max_bytes: int) -> dict[str, list[str]]:
    """Return the names of tensors by file."""
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name, tensor in outline.items():
        if tensor.nbytes > room and groups[-1]:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    n = len(groups)
    return {f"model-{i:05d}-of-{n:05d}.safetensors": g for i, g in enumerate(groups, start=1)}


def _index(shards: dict[str, list[str]], outline: Outline) -> dict[str, Any]:
    tensors = outline.values()
    return {
        "metadata": {
            "total_parameters": sum(tensor.numel() for tensor in tensors),
            "total_size": sum(tensor.nbytes for tensor in tensors),
        },
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }


def _write(stream: BinaryIO, outline: Outline, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write one safetensors file: the length of its header, the header, then the numbers.

    The library's own `save_file` needs all tensors of a file at once.

    Args:
        stream: The file.
        outline: Its tensors on meta.
        tensors: Iterator from which the file takes its tensors.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in outline.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8
    stream.write(len(text).to_bytes(8, "little") + text)
    for name, tensor in islice(tensors, len(outline)):
        assert tensor.shape == outline[name].shape, name
        flat = tensor.to("cpu", outline[name].dtype).contiguous().flatten()
        stream.write(flat.view(torch.uint8).numpy().data)


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"
