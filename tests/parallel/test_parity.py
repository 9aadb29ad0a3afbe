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


@pytest.mark.parametrize("ranks", CASES)
def test_parity(ranks, references, tmp_path):
    """All cases of so many ranks share a launch; a failing rank's traceback is in the message."""
    compare([case for case in CASES[ranks] if case not in DEEP], ranks, references, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [n for n in CASES if any(case in DEEP for case in CASES[n])])
def test_parity_deep(ranks, references, tmp_path):
    compare([case for case in CASES[ranks] if case in DEEP], ranks, references, tmp_path)


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
