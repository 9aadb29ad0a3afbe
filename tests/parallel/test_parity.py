"""Every kind of parallelism against one process: losses, gradients, norms, names, weights."""

import json

import pytest

from tests.parallel.matrix import CASES, write_references
from tests.support import torchrun


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    return write_references(tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("ranks", CASES)
def test_parity(ranks, references, tmp_path):
    """All cases of so many ranks share a launch; a failing rank's traceback is in the message."""
    results = tmp_path / "results.json"
    arguments = ("-m", "tests.parallel.matrix", str(references), str(results), *CASES[ranks])
    done = torchrun(ranks, *arguments, timeout=280)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(results.read_text())) == set(CASES[ranks])
