"""One thread for every process of the tests, a token cache of their own, and a run that they share."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

from tests.support import TINY, flags, here, succeed

torch.set_num_threads(1)

# The same examples every time; a hunt for others is a profile of its own.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    os.environ["NANIGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, token_cache):
    """The folder of a finished run of TINY, beside printed.txt; a test copies it to change it.

    It takes a second, which the workers of pytest-xdist need not save by a lock.
    """
    path = tmp_path_factory.mktemp("finished") / "run"
    command = ["train", *flags(*TINY), f"--run_dir={path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["nanigpt", *command]
        )  # a run records the command of its process
        (path.parent / "printed.txt").write_text(succeed(here(*command)))
    return path


@pytest.fixture
def text_file(tmp_path):
    """A small corpus with some structure: 40 kB of numbered lines."""
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {i}: {i * i} is the square of {i}.\n" for i in range(1000)))
    return path


def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    # A file runs in one process, and this one takes minutes: it must not begin when others end.
    items.sort(key=lambda item: item.path.name != "test_parity.py")
