"""Configs in Jupyter: what cells show, and the tutorial from its first cell to its last."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import nanigpt
from nanigpt.config.view.notebook import Diff
from tests.config.components import whole

NOTEBOOK = Path(nanigpt.__file__).parents[1] / "notebooks" / "inspect_a_config.ipynb"


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in a kernel of this interpreter, whatever else the user has installed."""
    environment = {
        "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PATH": os.defpath,  # an environment that is not activated
        "OMP_NUM_THREADS": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(notebook):
        client = NotebookClient(
            notebook,
            timeout=120,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        )
        client.execute()
        return notebook

    return run


def shown(cell, kind="text/html"):
    """What a cell shows as this type; its last output."""
    return cell.outputs[-1].data[kind]


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def cell_with(notebook, text):
    [cell] = [c for c in notebook.cells if c.cell_type == "code" and text in c.source]
    return cell


def test_the_tutorial_runs(execute):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    notebook.cells.append(nbformat.v4.new_code_cell("import sys; sys.executable"))
    execute(notebook)

    assert eval(shown(notebook.cells[-1], "text/plain")) == sys.executable
    tree = cell_with(notebook, "%load_ext")
    assert 'data-path="model.layers[0:32]"' in shown(tree)
    assert "8.03 B parameters" in shown(tree)
    assert "layers[0:32]: TransformerBlock  x32" in shown(tree, "text/plain")
    assert "8030261248" in shown(cell_with(notebook, "import n_parameters"), "text/plain")
    assert "did you mean 'lr'?" in printed(cell_with(notebook, "lrr"))
    assert "set:optimizer.lr=1e-4, was 0.0003" in printed(cell_with(notebook, "import explain"))
    assert "nanigpt-diff" in shown(cell_with(notebook, "import Diff"))
    assert ", True, False)" in shown(cell_with(notebook, "import fingerprint"), "text/plain")
    assert "TransformerBlock ×32" in shown(cell_with(notebook, "graph(longer.model)"))
    mistakes = printed(cell_with(notebook, "temperature = -1.0"))
    assert "model.layers[3].attention.wq.out_dim=5: expected 4096" in mistakes
    assert "task.sampler.temperature=-1.0: expected 0" in mistakes
    broken = shown(next(c for c in notebook.cells if c.source == "wrong.model"))
    assert (
        "no sizes: layers[3].attention.wq.out_dim=5: expected 4096" in broken
        and 'data-path="layers[4:32]"' in broken
    )
    assert "'8,030,261,248'" in shown(cell_with(notebook, "trainer = "), "text/plain")


def test_a_diff_in_a_terminal_is_text():
    old, new = whole(), whole()
    new.count = 3
    assert repr(Diff(old, new)) == "count: 1 -> 3"
    assert repr(Diff(old, old)) == "no difference"
    assert "no difference" in Diff(old, old)._repr_html_()
