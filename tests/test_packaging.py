"""What is installed: all packages, under names that no project of a user has."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_setup_lists_every_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = settings["options"]["packages"].split()
    folders = [p.parent for p in (ROOT / "nanigpt").rglob("__init__.py")]
    inside = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert sorted(listed) == sorted(inside | {"nanigpt.experiments", "nanigpt.fiddlers"})


def test_a_wheel_has_one_top_level_package(tmp_path):
    source = tmp_path / "source"
    for name in ("nanigpt", "experiments", "fiddlers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "."]
    subprocess.run([sys.executable, *command], cwd=source, check=True, timeout=120)
    (wheel,) = source.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"nanigpt"}
    assert "nanigpt/experiments/llama3.py" in names
    assert "nanigpt/fiddlers/scale.py" in names
    assert "nanigpt/config/view/static/page.html" in names


@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone"]])
def test_a_project_has_folders_of_the_same_names(tmp_path, launcher):
    for name in ("experiments", "fiddlers", "tests"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    command = [sys.executable, *launcher, "-m", "nanigpt", "check", "--config=config:qwen3_debug"]
    done = subprocess.run(
        [*command, "--config=fiddler:steps(10)"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout


@pytest.mark.parametrize(
    ("file", "planted"),
    [
        ("experiments/layouts.py", "import nanigpt.fiddlers.scale"),
        ("fiddlers/scale.py", None),
        ("nanigpt/models/norm.py", "import nanigpt.experiments.layouts"),
    ],
)
def test_import_contracts_see_the_mapped_packages(tmp_path, file, planted):
    for name in ("nanigpt", "experiments", "fiddlers", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    if planted:
        with (tmp_path / file).open("a") as out:
            out.write(f"\n{planted}\n")
    # The environment has no link to this tree, whose entrance would install it.
    script = (tmp_path / "tools" / "run").read_text().replace("\nset_up\n", "\n")
    script = script.replace("venv=$root/.venv", f"venv={Path(sys.executable).parents[1]}")
    (tmp_path / "tools" / "run").write_text(script)
    done = subprocess.run(
        ["bash", "tools/run", "imports"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == (1 if planted else 0), done.stdout + done.stderr
    assert ("BROKEN" in done.stdout) == bool(planted)
