"""Modules of a user's own, imported in this process."""

import sys

import fiddle as fdl
import pytest
from torch import nn

from nanigpt.cli.main import main
from nanigpt.config import imports, registry
from nanigpt.config.compose.flag import compose
from nanigpt.config.imports import import_all, import_code
from nanigpt.config.view.listing import listing
from nanigpt.errors import UsageError

LAYERS = '''
"""Layers."""
import enum
from dataclasses import dataclass
from typing import Annotated, Protocol

import fiddle as fdl
from torch import nn

from nanigpt import tags
from nanigpt.config.registry import component


class Own(nn.Module):
    """Scale by a number. It is not trained."""

    def __init__(self, *, dim: Annotated[int, tags.Width], factor: float = 2.0):
        super().__init__()
        self.dim, self.factor = dim, factor

    def forward(self, x):
        return self.factor * x


@component
class Decorated(Own):
    pass


@component
def made(dim: int) -> fdl.Config[Own]:
    """Return one."""
    return fdl.Config(Own, dim=dim, factor=4.0)


class Unfit(Protocol):
    pass


class Color(enum.Enum):
    RED = 1


class Mistake(Exception):
    pass


class _Hidden(Own):
    pass
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty working directory. Imports are forgotten after the test."""
    registry.load()
    for name in ("_imports", "_flags", "_recipes", "_fiddlers", "_components"):
        monkeypatch.setattr(registry, name, {**getattr(registry, name)})
    for name in ("_imports", "_flags"):
        getattr(registry, name).clear()
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def recipe(name):
    return (
        "from nanigpt.config.registry import recipe\n"
        "from nanigpt.experiments.llama3 import llama3_debug\n\n\n"
        f"@recipe\ndef {name}():\n    return llama3_debug()\n"
    )


@pytest.mark.parametrize("marked", [True, False])
def test_a_package_is_imported_with_its_modules(project, marked):
    folder = project / "own_package"
    (folder / "inner").mkdir(parents=True)
    if marked:
        (folder / "__init__.py").touch()
    (folder / "first.py").write_text(recipe("own_first"))
    (folder / "second.py").write_text("from own_package import first\n" + recipe("own_second"))
    (folder / "__main__.py").write_text("raise RuntimeError('run')\n")
    (folder / "inner" / "deep.py").write_text("raise RuntimeError('imported')\n")
    import_code("own_package")
    assert {"own_first", "own_second"} <= registry.recipes().keys()
    assert registry.imports() == ("own_package",)
    assert compose(["config:own_second"]) == compose(["config:llama3_debug"])


def test_a_file_is_imported_with_its_neighbours(project):
    (project / "lib").mkdir()
    (project / "lib" / "helper_of_own.py").write_text(recipe("own_helped"))
    (project / "lib" / "own_file.py").write_text("import helper_of_own\n")
    import_all(["lib/own_file.py", "./lib/own_file.py"])
    assert "own_helped" in registry.recipes()
    assert registry.imports() == ("lib/own_file.py", "./lib/own_file.py")
    assert sys.modules["own_file"].__file__ == str(project / "lib" / "own_file.py")


def test_a_link_has_a_name_of_its_own(project):
    (project / "elsewhere").mkdir()
    (project / "elsewhere" / "own_target.py").write_text(recipe("own_linked"))
    (project / "own_link.py").symlink_to(project / "elsewhere" / "own_target.py")
    import_code("own_link.py")
    assert registry.find_recipe("own_linked").__module__ == "own_link"


def test_classes_are_components(project):
    (project / "own_layers.py").write_text(LAYERS)
    import_code("own_layers")
    import_code("own_layers.py")  # the same module again
    own = sys.modules["own_layers"].Own
    cfg = compose(
        [
            "config:llama3_debug",
            "set:model.layers[4:].feed_forward=@Own(dim=256,factor=3)",
            "set:model.layers[0].feed_forward=@Decorated(dim=256)",
            "set:model.layers[1].feed_forward=@made(256)",
        ]
    )
    layers = cfg.model.layers
    assert layers[4].feed_forward == fdl.Config(own, dim=256, factor=3.0)
    assert layers[4].feed_forward is not layers[5].feed_forward
    assert type(layers[4].feed_forward.factor) is float
    assert fdl.get_callable(layers[0].feed_forward).__name__ == "Decorated"
    assert layers[1].feed_forward == fdl.Config(own, dim=256, factor=4.0)
    assert isinstance(fdl.build(layers[5].feed_forward), nn.Module)
    listed = listing()
    assert "  Own(dim: int, factor: float = 2.0)            Scale by a number.\n" in listed
    assert "  Decorated(dim: int, factor: float = 2.0)" in listed
    known = registry.components().keys()
    assert not known & {"Unfit", "Color", "Mistake", "_Hidden", "Annotated", "dataclass"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("@Own(width=3)", r"expected Own\(dim: int, factor: float = 2.0\)"),
        ("@Own(dim=a)", "dim=a: expected int, not str"),
        ("@Onw(dim=1)", "did you mean 'Own'"),
        ("3", "exchange it: --config=help lists components"),
    ],
)
def test_mistakes_with_a_class(project, value, message):
    (project / "own_layers.py").write_text(LAYERS)
    import_code("own_layers")
    with pytest.raises(UsageError, match=message):
        compose(["config:llama3_debug", f"set:model.layers[0].feed_forward={value}"])


def test_two_classes_of_one_name(project):
    for name in ("own_one", "own_two"):
        (project / f"{name}.py").write_text("class Own:\n    pass\n\n\nclass adamw:\n    pass\n")
        import_code(name)
    for name, places in (("Own", "own_one and in own_two"), ("adamw", "nanigpt.*and in own_one")):
        with pytest.raises(UsageError, match=rf"components are named '{name}': in .*{places}"):
            compose(["config:llama3_debug", f"set:optimizer=@{name}"])
        assert name not in registry.components()


def test_a_folder_without_init_yields_to_no_other_package(project):
    (project / "hypothesis").mkdir()
    (project / "hypothesis" / "own.py").touch()
    with pytest.raises(UsageError, match=r"already; add hypothesis/__init__\.py"):
        import_code("hypothesis")
    (project / "hypothesis" / "own.py").unlink()  # a folder of data: the installed one is meant
    import_code("hypothesis")


def test_a_mistake_in_a_helper_is_told_by_the_users_line(project):
    (project / "own_package").mkdir()
    (project / "own_package" / "broken.py").write_text("import json\n\n\njson.loads('{')\n")
    with pytest.raises(UsageError, match=r"^--import=own_package: own_package/broken\.py:4: JSON"):
        import_code("own_package")


def test_the_project_names_imports(project, capsys):
    (project / "own_code.py").write_text(recipe("own_project"))
    (project / "pyproject.toml").write_text('[tool.nanigpt]\nimport = ["own_code.py"]\n')
    assert main(["fingerprint", "--config=config:own_project"]) == 0
    assert registry.imports() == ("own_code.py",)
    assert registry.import_flags() == []  # another command here finds the file, too
    assert main(["help"]) == 0
    assert "own_project" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.nanigpt\n", "pyproject.toml: "),
        ('[tool.nanigpt]\nimports = ["x"]\n', "unknown key 'imports'; did you mean 'import'?"),
        ("tool.nanigpt = 3\n", "tool.nanigpt=3: expected a table [tool.nanigpt]"),
        ('[tool.nanigpt]\nimport = "x"\n', "import='x': expected a list such as"),
        ('[tool.nanigpt]\nimport = ["x.py"]\n', "pyproject.toml, import 'x.py': no such file\n"),
    ],
)
def test_mistakes_of_the_project(project, text, message, capsys):
    (project / "pyproject.toml").write_text(text)
    assert main(["fingerprint"]) == 2
    told = capsys.readouterr().err
    assert message in told and "try: --import" not in told


def test_a_folder_above_causes_no_import(project, monkeypatch):
    (project / "pyproject.toml").write_text('[tool.nanigpt]\nimport = ["nowhere"]\n')
    (project / "inner").mkdir()
    monkeypatch.chdir(project / "inner")
    assert imports.project_imports() == []


def test_a_hint_imports_nothing(project):
    (project / "own_package").mkdir()
    text = "raise RuntimeError('imported')\n" + recipe("own_recipe")
    (project / "own_package" / "recipes.py").write_text(text)
    with pytest.raises(UsageError, match=r"try: --import=own_package$"):
        compose(["config:own_recipe"])


def test_the_import_that_a_record_lacks(project):
    (project / "own_code.py").touch()
    import_code("own_code.py")
    recorded = ("own_code", "own_package", "lib/other_code.py")
    assert registry.missing_import("own_package.layers", recorded) == "own_package"
    assert registry.missing_import("other_code", recorded) == "lib/other_code.py"
    assert registry.missing_import("own_code", recorded) is None  # it is there
    assert registry.missing_import("own_packages", recorded) is None
