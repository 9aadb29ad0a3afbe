"""Who set what."""

import copy

import fiddle as fdl

from nanigpt.config.compose.flag import compose
from nanigpt.config.compose.tagged import set_tag
from nanigpt.config.record.file import dump
from nanigpt.config.record.provenance import explain
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
    assert lr.startswith("--config=tag:LearningRate=1e-4, was 0.001 in experiments/pretraining.py:")
    steps = explain(cfg, "steps")
    assert steps.startswith("--config=fiddler:steps(50) (fiddlers/scale.py:")
    assert ", was 700 in experiments/" in steps
    assert explain(cfg.optimizer, "betas") == (
        "--config=set:optimizer.betas[1]=0.99, was (0.9, 0.95) by default"
    )
    assert explain(cfg, "schedule").startswith(
        "--config=set:schedule=@linear(warmup_steps=3), was Cosine in experiments/pretraining.py:"
    )
    assert explain(cfg.model.layers[2], "activation_checkpointing") == (
        "--config=set:model.layers[*].activation_checkpointing=full, was 'none' by default"
    )


def test_a_record_is_told_by_its_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(dump(compose(["config:llama3_debug"])))
    cfg = compose([f"config_file:{path}", "set:steps=3"])
    assert explain(cfg, "seed") == ""
    assert explain(cfg.optimizer, "lr") == str(path)
    assert explain(cfg, "steps") == f"--config=set:steps=3, was 700 in {path}"
