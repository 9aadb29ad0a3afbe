"""Every kind of parallelism against one process: losses, gradients, norms, names, weights."""

import json

import pytest
import torch

from tests.parallel.matrix import CASES, DEEP, write_references
from tests.support import torchrun


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def references(request, tmp_path_factory):
    """Device, and the runs of one process on it: gloo serves CPUs, NCCL one GPU per rank."""
    device, least = request.param, min(CASES)
    if device == "cuda" and torch.cuda.device_count() < least:
        pytest.skip(f"needs {least} GPUs, this machine has {torch.cuda.device_count()}")
    return device, write_references(tmp_path_factory.mktemp("parity"), device)


def launches(deep: bool) -> list:
    """Ranks and cases that share a launch, at most 30."""
    found = []
    for ranks, cases in CASES.items():
        wanted = [case for case in cases if (case in DEEP) == deep]
        n = -(-len(wanted) // 30)
        for i in range(n):
            found.append(pytest.param(ranks, wanted[i::n], id=f"{ranks}-{i}"))
    return found


@pytest.mark.parametrize(("ranks", "cases"), launches(deep=False))
def test_parity(ranks, cases, references, tmp_path):
    """A failing rank's traceback is in the message."""
    compare(cases, ranks, references, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "cases"), launches(deep=True))
def test_parity_deep(ranks, cases, references, tmp_path):
    compare(cases, ranks, references, tmp_path)


def compare(cases, ranks, references, tmp_path):
    device, path = references
    if device == "cuda" and torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs, this machine has {torch.cuda.device_count()}")
    # On CUDA the ring's kernel computes in bf16 only.
    cases = [case for case in cases if device == "cpu" or "ring" not in case]
    results = tmp_path / "results.json"
    arguments = ("-m", "tests.parallel.matrix", device, str(path), str(results), *cases)
    done = torchrun(ranks, *arguments, timeout=280)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(results.read_text())) == set(cases)
