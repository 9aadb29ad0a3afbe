"""A checkpoint that somebody else wrote runs no code."""

import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from nanigpt.training.checkpoint_reader import Reader
from tests.support import here

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests/fixtures/runs/llama3"


class Trap:
    """Its pickle calls a function."""

    def __init__(self, victim: Path):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A stored run, whose paths are relative to the repository's root."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "llama3"
    folder.mkdir()
    shutil.copy(STORED / "config.json", folder)
    with tarfile.open(STORED / "checkpoints.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def checkpoint(run: Path) -> Path:
    return run / "checkpoints/step_00000004"


def replace(run: Path, content: bytes, name: str = ".metadata") -> None:
    """Replace a file of the checkpoint, and its size in the manifest."""
    folder = checkpoint(run)
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"][name] = len(content)
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


def metadata(run: Path):
    return FileSystemReader(checkpoint(run)).read_metadata()


def refused(run: Path, *words: str) -> None:
    done = here("eval", f"--run={run}")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_metadata_that_run_code_are_refused(run, tmp_path):
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Trap(victim)))
    assert victim.is_dir()  # the trap works
    victim.rmdir()
    replace(run, pickle.dumps(Trap(victim)))
    refused(run, str(checkpoint(run) / ".metadata"), "posix.mkdir, which may run code")
    found = metadata_with(run, planner_data=Trap(victim))
    replace(run, found)
    refused(run, "posix.mkdir, which may run code")
    assert not victim.exists()


def metadata_with(run: Path, **fields) -> bytes:
    with tarfile.open(STORED / "checkpoints.tar.xz") as archive:
        archive.extractall(run, filter="data")
    found = metadata(run)
    for name, value in fields.items():
        setattr(found, name, value)
    return pickle.dumps(found)


def test_values_that_run_code_are_refused(run, tmp_path):
    """Metadata may say that a tensor is any value, which upstream unpickles."""
    victim, stream = tmp_path / "victim", io.BytesIO()
    torch.save(Trap(victim), stream)
    found = metadata(run)
    keys = ("model.norm.weight", "rng.rank0.cpu")
    for key in keys:
        found.state_dict_metadata[key] = BytesStorageMetadata()
    for index in list(found.storage_data):
        if index.fqn in keys:
            place = found.storage_data.pop(index)
            place.relative_path, place.offset, place.length = "evil", 0, len(stream.getvalue())
            found.storage_data[type(index)(index.fqn)] = place
    replace(run, stream.getvalue(), "evil")
    replace(run, pickle.dumps(found))
    refused(run, "norm.weight is no tensor")
    assert not victim.exists()


def test_a_random_state_that_runs_code_is_refused(run, tmp_path):
    victim, stream = tmp_path / "victim", io.BytesIO()
    torch.save(Trap(victim), stream)
    found = metadata(run)
    key = next(key for key in found.state_dict_metadata if key.startswith("rng."))
    found.state_dict_metadata[key] = BytesStorageMetadata()
    index = next(index for index in found.storage_data if index.fqn == key)
    place = found.storage_data.pop(index)
    place.relative_path, place.offset, place.length = "evil", 0, len(stream.getvalue())
    found.storage_data[type(index)(key)] = place
    replace(run, stream.getvalue(), "evil")
    replace(run, pickle.dumps(found))
    done = here("train", f"--config=run:{run}", f"--run={run}")
    assert done.returncode == 2, done.stderr
    assert "rng.rank0.cpu in the checkpoint is no plain value, and may run code" in done.stderr
    assert not victim.exists()


@pytest.mark.parametrize("name", ["../step_00000004/__0_0.distcp", "/etc/passwd", "..", ""])
def test_files_outside_of_the_checkpoint_are_refused(run, name):
    found = metadata(run)
    next(iter(found.storage_data.values())).relative_path = name
    replace(run, pickle.dumps(found))
    refused(run, f"{name!r} is not the name of a file")


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"nonsense", pickle.dumps([1])])
def test_damaged_metadata_are_refused(run, content):
    replace(run, content)
    refused(run, "is not the metadata of a checkpoint")


def test_metadata_are_read_as_upstream_reads_them(run):
    found, expected = Reader(checkpoint(run)).read_metadata(), metadata(run)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data
    assert found.planner_data == expected.planner_data
