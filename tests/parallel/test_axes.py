"""Axes of the mesh are described in one place, and everything that goes through them asks there."""

import ast
from pathlib import Path

from nanigpt.parallel.mesh import MESH_AXES, Mesh

ROOT = Path(__file__).parents[2]


def listed(source: str) -> list[set[str]]:
    """The axes that are named in each list, tuple, set or dict of some code."""
    names = {axis.name for axis in MESH_AXES}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            elements = node.elts
        elif isinstance(node, ast.Dict):
            elements = [key for key in node.keys if key is not None]
        else:
            continue
        found.append({e.value for e in elements if isinstance(e, ast.Constant)} & names)
    return found


def test_no_other_file_lists_the_axes():
    files = [p for d in ("nanigpt", "fiddlers", "experiments") for p in (ROOT / d).rglob("*.py")]
    # A reader of another program's files knows that program's axes.
    files = [p for p in files if "importing" not in p.parts]
    lists = {
        str(path.relative_to(ROOT))
        for path in files
        if any(len(axes) > 2 for axes in listed(path.read_text()))
    }
    assert len(files) > 150
    assert lists <= {"nanigpt/parallel/mesh.py"}
    assert listed('for axis in ("pp", "tp", "cp"): ...') == [{"pp", "tp", "cp"}]


def test_every_axis_is_an_argument_of_the_mesh():
    mesh = Mesh(**{axis.name: axis.one_process for axis in MESH_AXES})
    assert mesh.sizes(1) == {axis.name: 1 for axis in MESH_AXES}
