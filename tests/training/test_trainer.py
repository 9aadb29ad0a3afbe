"""The training loop in one process."""

import json
import shutil

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.parallel.world import start_world
from nanigpt.training import loop
from nanigpt.training.loop import evaluate, train_step
from nanigpt.training.run_directory import RunDirectory
from nanigpt.training.setup import Session, restore, set_up_model
from tests.support import QUICK, metrics, tiny, train


@pytest.fixture
def rows(finished):
    return metrics(finished)


def test_every_step_has_a_row(rows):
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        expected = {"step", "loss", "grad_norm", "lr", "tokens", "tokens_per_second"}
        assert expected <= row.keys()
        assert row["tokens"] == row["step"] * 8 * 64
    assert [row["step"] for row in rows if "val_loss" in row] == [10, 20]
    assert rows[-1]["val_bits_per_byte"] > 0


def test_the_loss_falls(rows):
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "deepseek_v3", "llama4", "gpt_oss"])
def test_the_loss_falls_in_every_family(family, tmp_path):
    rows = train(tiny(recipe=f"{family}_debug"), tmp_path)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_the_learning_rate_follows_the_schedule(rows):
    cfg = tiny()
    schedule = build(cfg.schedule)
    for row in rows:
        assert row["lr"] == pytest.approx(cfg.optimizer.lr * schedule(row["step"] - 1, 20))


def test_a_naive_loop_gives_the_same_losses(rows):
    """The textbook: no accumulation, no deferred reads, mean loss, torch's own AdamW."""
    cfg = tiny()
    trainer = build(cfg)
    trainer.data.setup()
    set_up_model(trainer, start_world("cpu"))
    model = trainer.model
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=cfg.optimizer.lr,
        betas=(0.9, 0.95),
        fused=False,
        foreach=False,
    )
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = cfg.optimizer.lr * trainer.schedule(step, 20)
        batch = trainer.data.train_batch(range(8 * step, 8 * step + 8), seed=0)
        loss = torch.nn.functional.cross_entropy(
            model(batch.tokens_BL).flatten(0, 1), batch.labels_BL.flatten()
        )
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert rows[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert rows[step]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_accumulation_gives_the_same_losses(rows, tmp_path):
    accumulated = train(tiny("set:local_batch_size=2", *QUICK), tmp_path)
    for one, other in zip(rows, accumulated, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)


def test_recomputation_changes_no_loss(rows, tmp_path):
    edits = [f"set:model.layers[{i}].activation_checkpointing=full" for i in (0, 1)]
    recomputed = train(tiny(*edits, *QUICK), tmp_path)
    assert [r["loss"] for r in recomputed] == [r["loss"] for r in rows]


def test_masked_labels_weigh_nothing_in_any_microbatch():
    trainer = build(tiny())
    world = start_world("cpu")
    trainer.data.setup()
    parallel = set_up_model(trainer, world)
    batch = trainer.data.train_batch(range(8), seed=0)
    batch.labels_BL[:3] = -100
    batch.labels_BL[5, 10:] = -100
    valid = batch.labels_BL != -100
    expected = torch.nn.functional.cross_entropy(
        trainer.model(batch.tokens_BL)[valid], batch.labels_BL[valid]
    ).item()
    for pieces in (1, 4):
        size = 8 // pieces
        parts = [
            type(batch)(batch.tokens_BL[a : a + size], batch.labels_BL[a : a + size])
            for a in range(0, 8, size)
        ]
        optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.0)
        row = train_step(Session(trainer, parallel, optimizer), parts)
        assert row["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_bf16_trains_with_fp32_weights(tmp_path):
    cfg = tiny("set:steps=3", "set:schedule.warmup_steps=1", "tag:ComputeDType=bfloat16")
    assert len(train(cfg, tmp_path)) == 3
    trainer = build(cfg)
    restore(trainer, RunDirectory(tmp_path), start_world("cpu"))
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def test_tied_weights_train_as_one(tmp_path):
    rows = train(tiny(recipe="llama3_1b"), tmp_path)
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]


def test_tensorboard_has_the_curves(finished, rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 21))
    assert events.Scalars("loss")[4].value == pytest.approx(rows[4]["loss"])
    assert [e.step for e in events.Scalars("val_loss")] == [10, 20]


def test_a_step_is_one_event_of_tensorboard(finished):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    (file,) = (finished / "tensorboard").iterdir()
    steps = [e.step for e in EventFileLoader(str(file)).Load() if e.summary.value]
    assert steps == list(range(1, 21))


@pytest.mark.parametrize(
    "edits, message",
    [
        (["set:steps=0"], "steps=0: expected at least 1"),
        (["set:schedule.warmup_steps=20"], "warmup_steps=20: expected less than steps=20"),
        (["set:data.sequence_length=128"], "sequence_length=128: expected at most the 64 positions"),
        (["set:max_grad_norm=0"], "max_grad_norm=0"),
        (["set:task.sampler.temperature=-1"], "task.sampler.temperature=-1.0: expected 0"),
        (["set:task.sampler.max_new_tokens=0"], "task.sampler.max_new_tokens=0"),
        (["set:task.sampler=3"], "sampler=3: expected Sampler or None, not int"),
        (["set:optimizer=3"], "optimizer=3: expected a callable, not int"),
        (["set:model.layers[0]=7"], "expected Module, not int"),
        (["set:model.layers=[]"], "layers=.*expected at least one block"),
        (["set:model.layers[0].attention.n_kv_heads=0"], "n_kv_heads=0: expected more than 0"),
        (["set:global_batch_size=0"], "global_batch_size=0"),
        (["set:model.layers[0].activation_checkpointing=some"], "expected one of 'none', 'full'"),
        (["set:model.layers[0].attention.wq.float8=row"], "expected one of 'tensorwise', 'rowwise'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused_when_built(edits, message):
    with pytest.raises(UsageError, match=message):
        build(tiny(*edits))


@pytest.mark.parametrize(
    "edits, message",
    [
        (["set:model.embedding.compute_dtype=bf16"], "param_dtype=float32: expected .*bfloat16"),
        (["set:local_batch_size=3"], "size=8: expected a multiple of local batch 3 x 1"),
        (["set:data.corpus.path=/nowhere.txt"], "path='/nowhere.txt': expected a file"),
        (["set:optimizer.lr=-1"], "lr=-1.0: expected 0 or more"),
        (["set:optimizer.weight_decay=-1"], "weight_decay=-1.0: expected 0 or more"),
        (["set:optimizer.betas=(0.9, 1.0)"], "betas=.* two numbers from 0 to below 1"),
        (["tag:VocabSize=100"], "vocab_size=100: expected at least the 257 ids"),
    ],
)  # fmt: skip
def test_wrong_data_is_refused_before_any_step(edits, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(tiny(*edits), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_finished_run_has_nothing_to_train(finished, rows, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert train(tiny(), copy) == rows
    assert "already at step 20 of 20: nothing to train" in capsys.readouterr().out


def test_evaluation_weighs_tokens_and_bytes(tmp_path):
    """Against one plain forward pass over the same sequences."""
    trainer = build(tiny("set:evaluations[val].batch_size=3"))
    world = start_world("cpu")
    trainer.data.setup()
    result = evaluate(trainer, set_up_model(trainer, world))
    available = trainer.data.n_sequences("validation")
    batch = trainer.data.validation_batch([i * available // 16 for i in range(16)])
    with torch.no_grad():
        logits = trainer.model(batch.tokens_BL).flatten(0, 1)
    total = torch.nn.functional.cross_entropy(logits, batch.labels_BL.flatten(), reduction="sum")
    n_bytes = (batch.labels_BL < 256).sum()
    assert result["val_loss"] == pytest.approx(total.item() / (16 * 64), rel=1e-5)
    bits = total.item() / n_bytes.item() / torch.log(torch.tensor(2.0)).item()
    assert result["val_bits_per_byte"] == pytest.approx(bits, rel=1e-5)


def test_a_sample_longer_than_the_context_is_shortened(tmp_path, capsys):
    cfg = tiny("fiddler:steps(2)", "set:task.sampler.max_new_tokens=5000")
    assert len(train(cfg, tmp_path)) == 2
    assert "--- sample of 'def '\ndef " in capsys.readouterr().out


def test_an_interrupted_run_has_its_rows(tmp_path, monkeypatch):
    trainer = build(tiny("set:metrics.log_interval=100"))
    steps = iter(range(6))
    plain = loop.train_step

    def interrupted(*args):
        if next(steps) == 5:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(RunDirectory(tmp_path), start_world("cpu"))
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2, 3, 4, 5]


def test_rows_are_json_one_a_line(finished):
    for line in (finished / "metrics.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line), dict)
    assert metrics(finished)[-1]["step"] == 20
