"""One thread for every process of the tests, and a token cache of their own."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

torch.set_num_threads(1)

# The same examples every time; a hunt for others is a profile of its own.
hypothesis.settings.register_profile("default", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory):
    os.environ["NANIGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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
