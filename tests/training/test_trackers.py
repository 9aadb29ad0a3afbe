"""Where rows go: one's own tracker, Weights & Biases offline, several evaluations."""

import json
import struct
import sys
import time

import fiddle as fdl
import pytest

from nanigpt.cli.main import main
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.data.corpus import TextCorpus
from nanigpt.parallel.world import World, start_world
from nanigpt.training import loop
from nanigpt.training.evaluation import Evaluation
from nanigpt.training.metrics import Metrics, Work
from nanigpt.training.trackers.tracker import RunInfo
from tests.support import QUICK, TINY, flags, metrics, nanigpt, succeed, tiny, torchrun, train


class Memory:
    """A user's tracker: no base class."""

    seen: list = []

    def open(self, info, /):
        self.seen.append(("open", info))

    def write(self, rows, /):
        self.seen.append(("write", [row["step"] for row in rows]))

    def close(self):
        self.seen.append(("close", None))


@pytest.fixture
def seen():
    Memory.seen.clear()
    return Memory.seen


def with_memory(*edits) -> fdl.Config:
    cfg = tiny("fiddler:steps(5)", *QUICK, *edits)
    cfg.trackers = [*cfg.trackers, fdl.Config(Memory)]
    return cfg


def test_a_tracker_needs_the_protocol_only(seen, tmp_path):
    train(with_memory("set:metrics.log_interval=2"), tmp_path)
    events = [event for event, _ in seen]
    assert events[0] == "open" and events[-1] == "close" and events.count("close") == 1
    info = seen[0][1]
    assert (info.directory, info.step, info.steps) == (tmp_path, 0, 5)
    assert info.losses == ("loss",) and info.evaluations == ["val"]
    assert [steps for event, steps in seen if event == "write"] == [[1], [2], [3, 4], [5]]


def test_trackers_are_closed_when_training_is_interrupted(seen, tmp_path, monkeypatch):
    plain, count = loop.train_step, iter(range(9))

    def interrupted(*args):
        if next(count) == 3:
            raise KeyboardInterrupt
        return plain(*args)

    monkeypatch.setattr(loop, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(with_memory(), tmp_path)
    assert seen[-2:] == [("write", [2, 3]), ("close", None)]


def test_only_the_main_process_has_trackers(seen, tmp_path):
    recorded = Metrics(log_interval=1)
    world = World(rank=1, size=2, device=start_world("cpu").device)
    work = Work("tokens", 10, None)
    recorded.open([Memory()], RunInfo(directory=tmp_path, steps=3), world, work=work)
    recorded.record({"step": 1, "loss": 1.0})
    recorded.close()
    assert seen == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package, edit", [("tensorboard", None), ("wandb", "fiddler:wandb")])
def test_a_missing_package_is_told_before_anything_is_made(
    package, edit, tmp_path, monkeypatch, capsys
):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == package else real(n, *a)
    )
    edits = flags(*TINY, *([edit] if edit else []))
    assert main(["train", *edits, f"--run_dir={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert f"expected the package {package}, which is not installed" in err
    assert "pip install" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "key, message", [(None, "No API key configured"), ("short", "API key must have")]
)
def test_a_missing_login_is_told_before_anything_is_made(key, message, tmp_path, monkeypatch):
    """Without a terminal and without a network."""
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    done = nanigpt("train", *flags(*TINY, "fiddler:wandb"), f"--run_dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert "trackers[3]: expected a login to Weights & Biases" in done.stderr
    assert message in done.stderr and "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def offline(monkeypatch):
    """Weights & Biases without a network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return monkeypatch.setenv


def records(path):
    """What a file of Weights & Biases holds: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as protobuf

    data, part, at = path.read_bytes(), b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the last part of a record
            yield protobuf.Record.FromString(part)
            part = b""


def sent(folder):
    """Ids, projects, configs and rows of all offline runs below a folder, in their order."""
    runs, rows = [], []
    for path in sorted(folder.glob("**/run-*.wandb"), key=lambda p: p.stat().st_mtime):
        for record in records(path):
            if record.HasField("run"):
                config = {u.key: json.loads(u.value_json) for u in record.run.config.update}
                runs.append((record.run.run_id, record.run.project, config))
            if record.HasField("history"):
                items = record.history.item
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return runs, rows


def test_weights_and_biases_has_every_step_once_also_of_a_resumed_run(
    tmp_path, monkeypatch, offline
):
    offline("WANDB_PROJECT", "of-the-environment")
    run = tmp_path / "run"
    directives = [*TINY, "fiddler:steps(8)", *QUICK, "set:metrics.log_interval=1"]
    directives += ["set:checkpointer.interval=4", "fiddler:wandb"]
    command = ["train", *flags(*directives), f"--run_dir={run}"]
    plain = loop.train_step

    def killed(session, batches):
        if session.progress.step == 6:
            raise KeyboardInterrupt
        return plain(session, batches)

    monkeypatch.setattr(loop, "train_step", killed)
    assert main(command) == 130
    monkeypatch.setattr(loop, "train_step", plain)
    time.sleep(1.1)  # folders of offline runs are named by the second
    assert main(command) == 0
    runs, rows = sent(run)
    kept = json.loads((run / "wandb.json").read_text())
    assert kept["step"] == 8
    assert {(name, project) for name, project, _ in runs} == {(kept["id"], "of-the-environment")}
    assert [row["_step"] for row in rows] == list(range(1, 9))
    by_step = {row["step"]: row for row in metrics(run)}
    for row in rows:
        assert row["loss"] == by_step[row["_step"]]["loss"]
        assert row["grad_norm"] == by_step[row["_step"]]["grad_norm"]
    config = runs[0][2]
    assert config["fingerprint"] == fingerprint(tiny(*directives[2:]))
    assert config["config"]["optimizer.lr"] == tiny().optimizer.lr
    assert config["config"]["model.layers[0].attention.wq.out_dim"] == 128


def test_weights_and_biases_goes_where_its_environment_says(tmp_path, offline):
    offline("WANDB_DIR", str(tmp_path / "there"))
    offline("WANDB_RUN_ID", "chosen")
    (tmp_path / "there").mkdir()
    edits = flags(*TINY, "fiddler:steps(2)", *QUICK, "fiddler:wandb(project=mine)")
    succeed(nanigpt("train", *edits, f"--run_dir={tmp_path / 'run'}"))  # which reads them anew
    runs, rows = sent(tmp_path / "there")
    assert {(name, project) for name, project, _ in runs} == {("chosen", "mine")}
    assert [row["_step"] for row in rows] == [1, 2]
    assert not (tmp_path / "run" / "wandb").exists()


def with_two_evaluations(folder) -> fdl.Config:
    """The second one is on another text."""
    lines = (json.dumps({"text": f"{n} and {n * n}"}) + "\n" for n in range(2000))
    (folder / "digits.jsonl").write_text("".join(lines))
    cfg = tiny("fiddler:steps(4)", "set:task.sampler.max_new_tokens=1")
    corpus = fdl.Config(TextCorpus, path=str(folder / "digits.jsonl"))
    digits = fdl.deepcopy_with(cfg.data, corpus=corpus)
    cfg.evaluations["digits"] = fdl.Config(Evaluation, data=digits, interval=2, n_samples=8)
    return cfg


def test_a_second_evaluation_has_a_name_a_dataset_and_an_interval_of_its_own(tmp_path, capsys):
    from nanigpt.config.record.file import dump

    cfg = with_two_evaluations(tmp_path)
    rows = train(cfg, tmp_path / "run")
    assert [row["step"] for row in rows if "digits_loss" in row] == [2, 4]
    assert [row["step"] for row in rows if "val_loss" in row] == [4]
    assert rows[-1]["digits_loss"] != rows[-1]["val_loss"]
    assert "step 2/4  digits loss" in capsys.readouterr().out
    (tmp_path / "run" / "config.json").write_text(dump(cfg))
    for names in ([], ["digits"], ["digits", "val"]):
        chosen = [f"--evaluation={name}" for name in names]
        assert main(["eval", f"--run_dir={tmp_path / 'run'}", *chosen]) == 0
        found = json.loads(capsys.readouterr().out)
        wanted = names or ["val", "digits"]
        measures = [f"{name}_{m}" for name in wanted for m in ("loss", "bits_per_byte")]
        assert found == {key: rows[-1][key] for key in ("step", *measures)}
    assert main(["eval", f"--run_dir={tmp_path / 'run'}", "--evaluation=digit"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err


def test_an_evaluation_asks_only_for_what_it_needs(finished, tmp_path, monkeypatch, capsys):
    """No 8-bit state without torchao, no training batch that the ranks could divide."""
    from nanigpt.config.record.file import dump

    run = tmp_path
    (run / "checkpoints").symlink_to(finished / "checkpoints")
    edits = ("set:optimizer.state=8bit", "tag:GlobalBatchSize=7")
    (run / "config.json").write_text(dump(tiny(*QUICK, *edits)))
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda n, *a: None if n == "torchao" else real(n, *a)
    )
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert main(["eval", f"--run_dir={run}"]) == 0
    alone = json.loads(capsys.readouterr().out)
    out = succeed(torchrun(2, "-m", "nanigpt", "eval", f"--run_dir={run}"))
    two = json.loads(next(line for line in out.splitlines() if line.startswith("{")))
    assert two["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-5)
