"""The outside project, installed beside nanigpt without touching this environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "outside_project"


@pytest.fixture(scope="session")
def outside(tmp_path_factory, token_cache):
    """Install examples/outside_project into a folder; return the environment that finds it."""
    folder = tmp_path_factory.mktemp("outside")
    source = folder / "source"  # setuptools writes beside the source
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([*pip, *offline, "--target", folder / "installed", source], check=True)
    return {"PYTHONPATH": str(folder / "installed"), "OMP_NUM_THREADS": "1"} | {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)
    }
