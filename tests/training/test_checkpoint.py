"""Checkpoints: whole or absent, and resuming bit for bit."""

import json
import os
import shutil

import pytest
import torch
from torch import nn

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.models.init import initialize, materialize
from nanigpt.parallel.world import start_world
from nanigpt.training.checkpoint import Checkpointer, Progress, list_checkpoints
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import restore
from nanigpt.training.trackers.json_lines import drop_rows_after
from tests.models.test_init import Shared
from tests.support import metrics, tiny, train

MEASURED = (
    *("loss", "multi_token_loss", "grad_norm", "lr", "tokens"),
    *("val_loss", "val_bits_per_byte"),
)


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def numbers(rows):
    return [{k: row[k] for k in MEASURED if k in row} for row in rows]


def cut_back(path, step):
    """What a run killed just after its checkpoint of `step` left behind, and a bit more."""
    for checkpoint in list_checkpoints(RunDirectory(path)):
        if int(checkpoint.name.removeprefix("step_")) > step:
            shutil.rmtree(checkpoint)


@pytest.mark.parametrize(
    "recipe, edits",
    [
        ("llama3_1b", ()),
        ("qwen3_moe_debug", ("fiddler:multi_token", "tag:BalanceRate=0.01")),
    ],
)
def test_resuming_equals_never_having_stopped_bit_for_bit(tmp_path, recipe, edits):
    cfg = tiny(*edits, recipe=recipe)
    train(cfg, tmp_path)
    assert_resumes_bit_for_bit(cfg, tmp_path)


def test_resuming_the_usual_run_equals_never_having_stopped_bit_for_bit(copy):
    assert_resumes_bit_for_bit(tiny(), copy)


def assert_resumes_bit_for_bit(cfg, path):
    whole, final = metrics(path), final_weights(cfg, path)
    cut_back(path, 10)
    resumed = train(cfg, path)
    assert [row["step"] for row in resumed] == list(range(1, 21))
    assert numbers(resumed) == numbers(whole)
    for name, tensor in final_weights(cfg, path).items():
        assert torch.equal(tensor, final[name]), name


def final_weights(cfg, path):
    trainer = build(cfg)
    assert restore(trainer, RunDirectory(path), start_world("cpu"))[1].step == 20
    return trainer.model.state_dict()


def test_the_rng_state_is_restored(tmp_path):
    run, world = RunDirectory(tmp_path), start_world("cpu")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.manual_seed(7)
    Checkpointer().save(run, world, model, optimizer, Progress(step=1))
    expected = torch.rand(5)
    torch.manual_seed(8)
    Checkpointer().load_latest(run, world, model, optimizer)
    assert torch.equal(torch.rand(5), expected)


def test_an_incomplete_checkpoint_is_never_chosen(copy):
    cfg = tiny()
    run = RunDirectory(copy)
    [first, last] = list_checkpoints(run)
    incomplete = last.with_name(".step_00000020.incomplete")
    last.rename(incomplete)
    (incomplete / ".metadata").unlink()
    trainer = build(cfg)
    assert restore(trainer, run, start_world("cpu"))[1].step == 10
    assert train(cfg, copy)[-1]["step"] == 20  # and it is no obstacle to saving step 20
    assert [p.name for p in list_checkpoints(run)] == [first.name, last.name]
    assert not incomplete.exists()


@pytest.mark.parametrize("damage", ["no metadata", "no manifest", "cut short", "empty"])
def test_a_damaged_checkpoint_is_passed_over(copy, damage, caplog):
    last = copy / "checkpoints" / "step_00000020"
    if damage == "no metadata":
        (last / ".metadata").unlink()
    elif damage == "no manifest":
        (last / "checkpoint.json").unlink()
    elif damage == "cut short":
        os.truncate(last / "__0_0.distcp", 1000)
    else:
        shutil.rmtree(last)
        last.mkdir()
    assert restore(build(tiny()), RunDirectory(copy), start_world("cpu"))[1].step == 10
    assert "step_00000020 is incomplete" in caplog.text
    assert [row["step"] for row in train(tiny(), copy)] == list(range(1, 21))


def test_rope_stays_one_right_table_through_state_dict_and_checkpoint(finished):
    """The table is derived from the config and is stored in neither; it must survive both."""
    trainer = build(tiny())
    restore(trainer, RunDirectory(finished), start_world("cpu"))
    model = trainer.model
    model.load_state_dict(model.state_dict())
    tables = dict(model.named_buffers(remove_duplicate=False))
    assert list(tables) == [f"layers.{i}.attention.rope.cos_sin_2MF" for i in range(2)]
    assert len({id(table) for table in tables.values()}) == 1
    angle = torch.outer(torch.arange(64.0), 500_000.0 ** -(torch.arange(0, 8, 2) / 8))
    expected = torch.stack([angle.cos(), angle.sin()])
    torch.testing.assert_close(tables["layers.1.attention.rope.cos_sin_2MF"], expected)


def test_a_change_of_the_text_is_told(text_file, tmp_path, caplog):
    cfg = tiny(f"set:data.corpus.path={text_file}", "fiddler:steps(4)")
    train(cfg, tmp_path / "run")
    text_file.write_text(text_file.read_text()[:30_000])
    train(cfg, tmp_path / "run")
    assert "the data are not those of the checkpoint" in caplog.text


def test_a_checkpoint_is_complete_in_itself(tmp_path):
    run, world = RunDirectory(tmp_path), start_world("cpu")
    run.config.write_text("{}")
    model = nn.Linear(2, 2)
    progress = Progress(step=3, samples=24, tokens=1536)
    folder = Checkpointer().save(run, world, model, torch.optim.AdamW(model.parameters()), progress)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    assert manifest["progress"] == vars(progress)
    assert manifest["files"].keys() == {".metadata", "__0_0.distcp", "config.json"}
    assert (folder / "config.json").read_text() == "{}"


def test_only_the_newest_are_kept(tmp_path):
    run, world = RunDirectory(tmp_path), start_world("cpu")
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(1, 6):
        Checkpointer(keep=2).save(run, world, model, optimizer, Progress(step=step))
    assert [p.name for p in list_checkpoints(run)] == ["step_00000004", "step_00000005"]


def test_shared_tensors_are_stored_once_and_stay_shared(tmp_path):
    from torch.distributed.checkpoint import FileSystemReader

    run, world = RunDirectory(tmp_path), start_world("cpu")
    model = Shared()
    materialize(model, "cpu")
    initialize(model, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    folder = Checkpointer().save(run, world, model, optimizer, Progress(step=1))
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    assert {k for k in stored if k.startswith("model.")} == {
        "model.parts.0.weight",
        "model.parts.0.table",
    }
    with torch.no_grad():
        model.parts[2].weight.zero_()
        model.parts[1].table.zero_()
    Checkpointer().load_latest(run, world, model, optimizer)
    assert model.parts[2].weight is model.parts[0].weight
    assert model.parts[2].weight.tolist() == [3.0] * 4
    assert model.parts[2].table is model.parts[1].table
    assert model.parts[1].table.tolist() == [7.0] * 2


def test_another_model_is_refused(finished):
    with pytest.raises(
        UsageError, match=r"belongs to another model: embedding.weight is \[512, 128\]"
    ):
        restore(build(tiny("tag:VocabSize=600")), RunDirectory(finished), start_world("cpu"))


def test_another_optimizer_is_refused(tmp_path):
    run, world = RunDirectory(tmp_path), start_world("cpu")
    model = nn.Linear(2, 1, bias=False)
    plain, other = (torch.optim.Adam(model.parameters(), amsgrad=a) for a in (False, True))
    Checkpointer().save(run, world, model, plain, Progress(step=1))
    with pytest.raises(UsageError, match=r"another optimizer: no weight\.max_exp_avg_sq; resume"):
        Checkpointer().load_latest(run, world, model, other)


def test_a_run_without_checkpoint_cannot_be_restored(tmp_path):
    with pytest.raises(UsageError, match="no checkpoint yet"):
        restore(build(tiny()), RunDirectory(tmp_path), start_world("cpu"))


def test_a_run_can_be_prolonged(tmp_path):
    train(tiny("set:steps=4", "set:schedule.warmup_steps=1"), tmp_path)
    rows = train(tiny("set:steps=6", "set:schedule.warmup_steps=1"), tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_a_broken_row_costs_no_other(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    drop_rows_after(tmp_path / "metrics.jsonl", 3)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 3]
    assert "line 2 is no row of a step" in caplog.text


def test_rows_after_the_checkpoint_and_half_a_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    drop_rows_after(path, 2)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]
