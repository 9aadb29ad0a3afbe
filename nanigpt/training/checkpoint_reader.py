"""Read checkpoints without running code that somebody put into them.

PyTorch pickles a checkpoint's `.metadata`, and also values that are no tensors. A pickle may call
any function. Here only the classes that a checkpoint needs are allowed.
"""

import io
import pathlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, Metadata
from torch.distributed.checkpoint.planner import ReadItem

from nanigpt.errors import UsageError
from nanigpt.files import plain_name

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata")),
    *((_METADATA, name) for name in ("MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
}
_PATHS = ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")


class _Refused(pickle.UnpicklingError):
    """A pickle names something that a checkpoint does not need."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition(".")[0] == "pathlib" and name in _PATHS:
            return pathlib.PurePath  # the folder where the checkpoint was written
        if (module, name) not in _ALLOWED:
            raise _Refused(f"it names {module}.{name}, which may run code")
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """Reader of a checkpoint's folder."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the checkpoint's metadata.

        Raises:
            UsageError: The file is damaged, names code, or names files outside of the folder.
        """
        path = Path(self.path) / ".metadata"
        try:
            with open(path, "rb") as stream:
                found = _Unpickler(stream).load()
            for problem in _problems(found):
                raise _Refused(problem)
        except Exception as error:  # damaged pickles raise many kinds
            problem = str(error) or type(error).__name__
            raise UsageError(
                f"{path} is not the metadata of a checkpoint that nanigpt wrote: {problem}; remove "
                "the folder to resume from an earlier checkpoint"
            ) from error
        found.storage_meta.load_id = self.load_id
        return found


def _problems(found: Any) -> Iterator[str]:
    """Yield a message if unpickled metadata has another form, or reads other files."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import (
        BytesStorageMetadata,
        StorageMeta,
        TensorStorageMetadata,
    )

    kinds = (BytesStorageMetadata, TensorStorageMetadata)
    if not isinstance(found, Metadata):
        yield f"it holds {type(found).__name__}"
        return
    stored, places = found.state_dict_metadata, found.storage_data
    if not isinstance(stored, dict) or not all(isinstance(v, kinds) for v in stored.values()):
        yield "it describes no tensors"
    if not isinstance(places, dict) or not all(
        isinstance(place, _StorageInfo) for place in places.values()
    ):
        yield "it has no places of tensors"
        return
    for place in places.values():
        plain_name(place.relative_path)
    if not isinstance(found.storage_meta, StorageMeta):
        yield "it does not say what wrote it"


class Planner(DefaultLoadPlanner):
    """Plan that reads only plain values beside tensors."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Read a value that is no tensor.

        Raises:
            UsageError: It names code.
        """
        try:
            torch.load(value, weights_only=True)
        except pickle.UnpicklingError as error:
            name = read_item.dest_index.fqn
            raise UsageError(
                f"{name} in the checkpoint is no plain value, and may run code"
            ) from error
        value.seek(0)  # what names only plain values is as safe to the reader that upstream uses
        super().load_bytes(read_item, value)
