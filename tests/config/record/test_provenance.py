"""Who set what."""

import copy
import re
from pathlib import Path

import fiddle as fdl

from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.record.file import dump
from nanigpt.config.record.provenance import explain
from nanigpt.config.view.show import render
from nanigpt.experiments import llama3
from tests.config.components import Part, Rate, whole

HERE = "tests/config/record/test_provenance.py"


def line_of(text: str) -> int:
    lines = open(__file__).read().splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.strip().startswith(text))


def test_a_default_has_no_origin():
    assert explain(fdl.Config(Part), "size") == ""


def test_code_is_told_by_its_line():
    cfg = fdl.Config(Part, size=7)
    assert explain(cfg, "size") == f"{HERE}:{line_of('cfg = fdl.Config(Part, size=7)')}"
    cfg.size = 8
    assert explain(cfg, "size") == (
        f"{HERE}:{line_of('cfg.size = 8')}, was 7 in {HERE}:{line_of('cfg = fdl.Config(Part')}"
    )
    del cfg.size
    assert explain(cfg, "size") == ""


def test_a_tag_set_in_code_is_told_by_the_line_that_asked():
    cfg = whole()
    fdl.set_tagged(cfg, tag=Rate, value=0.25)
    line = line_of("fdl.set_tagged(cfg, tag=Rate, value=0.25)")
    assert explain(cfg.parts[0], "rate") == f"{HERE}:{line}"
    set_tag(cfg, Rate, 0.75)
    assert explain(copy.deepcopy(cfg).parts[0], "rate") == (
        f"{HERE}:{line_of('set_tag(cfg, Rate, 0.75)')}, was 0.25 in {HERE}:{line}"
    )


def test_directives_are_told():
    cfg = compose(
        [
            "config:llama3_debug",
            "tag:LearningRate=1e-4",
            "fiddler:steps(50)",
            "set:optimizer.betas[1]=0.99",
            "set:schedule=@linear(warmup_steps=3)",
            "set:model.layers[*].activation_checkpointing=full",
        ]
    )
    lr = explain(cfg.optimizer, "lr")
    assert lr.startswith("--config=tag:LearningRate=1e-4, was 0.001 in experiments/llama3.py:")
    steps = explain(cfg, "steps")
    assert steps.startswith("--config=fiddler:steps(50) (fiddlers/scale.py:")
    assert ", was 700 in experiments/" in steps
    assert explain(cfg.optimizer, "betas") == (
        "--config=set:optimizer.betas[1]=0.99, was (0.9, 0.95) by default"
    )
    assert explain(cfg, "schedule").startswith(
        "--config=set:schedule=@linear(warmup_steps=3), was Cosine in experiments/llama3.py:"
    )
    assert explain(cfg.model.layers[2], "activation_checkpointing") == (
        "--config=set:model.layers[*].activation_checkpointing=full, was 'none' by default"
    )


def test_the_line_of_a_recipe_comes_before_those_that_it_calls():
    source = Path(llama3.__file__).read_text().splitlines()
    start = next(i for i, line in enumerate(source) if line.startswith("def llama3_8b"))
    calls = {}
    for number, line in enumerate(source[start:], start + 1):
        for name in ("llama3_model", "pretraining"):
            if f"{name}(" in line:
                calls.setdefault(name, number)
    for cfg in (compose(["config:llama3_8b"]), llama3.llama3_8b()):
        width, rate = (
            explain(cfg.model.layers[3].attention.wq, "in_dim"),
            explain(cfg.optimizer, "lr"),
        )
        assert width.startswith(
            f"experiments/llama3.py:{calls['llama3_model']} through experiments/"
        )
        assert rate.startswith(f"experiments/llama3.py:{calls['pretraining']} through experiments/")


def test_arguments_of_a_recipe_are_told():
    cfg = compose(["config:llama3_debug(dim=512)", "fiddler:muon"])
    width = explain(cfg.model.embedding, "dim")
    assert width.startswith("--config=config:llama3_debug(dim=512) (experiments/llama3.py:")
    assert "copy" not in explain(cfg.optimizer, "lr")


def test_the_whole_history_is_told():
    cfg = compose(
        ["config:llama3_debug", "fiddler:steps(50)", "set:steps=40", "tag:Steps=40", "set:steps=30"]
    )
    parts = explain(cfg, "steps").split(", was ")
    starts = ["--config=set:steps=30", "40 by --config=tag:Steps=40", "40 by --config=set:steps=40"]
    starts += [
        "50 by --config=fiddler:steps(50) (fiddlers/scale.py:",
        "700 in experiments/llama3.py:",
    ]
    assert len(parts) == len(starts)
    assert all(part.startswith(start) for part, start in zip(parts, starts, strict=True)), parts


def test_readme_shows_the_history_as_it_is_printed():
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    shown = next(line for line in readme.splitlines() if "<- --config=tag:LearningRate" in line)
    cfg = compose(["config:llama3_8b", "tag:LearningRate=1e-3"])
    printed = [line for line in render(cfg, why=True).splitlines() if " lr = " in line]
    numberless = [re.sub(r"py:\d+", "py:N", line.strip()) for line in (shown, *printed)]
    assert numberless[0] == numberless[1]


def test_a_copy_by_a_fiddler_keeps_the_origin():
    cfg = compose(["config:llama3_debug", "tag:LearningRate=2e-4", "fiddler:muon"])
    assert explain(cfg.optimizer, "lr").endswith(
        ", a copy of what --config=tag:LearningRate=2e-4 set"
    )
    assert "copy" not in explain(cfg.optimizer, "weight_decay")
    assert explain(cfg.optimizer.others, "lr").startswith(
        "--config=tag:LearningRate=2e-4, was 0.001"
    )
    cfg = compose(["config:llama3_debug", "tag:Steps=77", "fiddler:multi_token(2)", "set:steps=9"])
    assert explain(cfg, "steps").startswith(
        "--config=set:steps=9, was 77 by --config=tag:Steps=77,"
    )


def test_equal_values_that_a_fiddler_wrote_itself_are_no_copies():
    edits = ("set:evaluations[val].interval=10", "set:steps=20", "fiddler:debug_scale")
    cfg = compose(["config:llama3_debug", *edits])
    for node, name in ((cfg.checkpointer, "interval"), (cfg, "steps")):
        assert "copy" not in explain(node, name)
    edits = ("set:optimizer.weight_decay=0.125", "fiddler:parameter_group(norm, lr=0.125)")
    cfg = compose(["config:llama3_debug", *edits])
    assert "copy" not in explain(cfg.optimizer.groups[-1], "lr")


def test_a_record_is_told_by_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(dump(compose(["config:llama3_debug"])))
    cfg = compose([f"config_file:{path}", "set:steps=3"])
    assert explain(cfg, "seed") == ""
    assert explain(cfg.optimizer, "lr") == str(path)
    assert explain(cfg, "steps") == f"--config=set:steps=3, was 700 in {path}"
