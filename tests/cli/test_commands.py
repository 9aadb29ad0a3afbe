"""Commands as a user runs them."""

import json
import os
import shlex
import shutil
import signal
import time
import types

import pytest
import torch

from nanigpt.cli.main import main
from nanigpt.cli.trainer import recorded_config
from nanigpt.config.record.file import dump
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.config.record.run_config import load_run
from nanigpt.errors import UsageError
from tests.data.test_tokenizer import train_bpe
from tests.support import (
    TINY,
    built_model,
    finish,
    flags,
    here,
    metrics,
    nanigpt,
    start,
    succeed,
    tiny,
    torchrun,
)


def test_training_prints_plain_lines(finished):
    out = (finished.parent / "printed.txt").read_text()
    lines = out.splitlines()
    assert lines[0] == f"run {finished}, config {fingerprint(tiny())[:8]}"
    first = next(line for line in lines if line.startswith("step  1/20"))
    for part in ("loss", "grad norm", "lr", "tokens/s", "ms/step", "peak", "GiB", "ETA"):
        assert part in first
    assert "MFU" not in first  # a CPU's peak is not known
    assert any(line.startswith("step 20/20  validation loss") for line in lines)
    assert "--- sample of 'def '\ndef " in out


def test_the_run_directory_is_complete(finished):
    assert load_run(str(finished)) == tiny()
    launch = json.loads((finished / "launches.jsonl").read_text())
    assert launch["argv"] == ["train", *flags(*TINY), f"--run_dir={finished}"]
    assert launch["versions"]["torch"].startswith("2.")
    assert launch["processes"] == 1
    assert launch["fingerprint"] == fingerprint(tiny())
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    recorded = {name for row in rows for name in row}
    losses = {"loss", "grad_norm", "val_loss", "val_bits_per_byte"}
    speed = {"tokens_per_second", "ms_per_step", "peak_memory_gib"}
    assert recorded == {"step", "tokens", "lr", *losses, *speed}
    assert set(launch) >= {"time", "git", "python", "platform", "device"}
    assert {p.name for p in finished.iterdir()} == {
        "config.json",
        "launches.jsonl",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        ".lock",
    }


@pytest.mark.parametrize("edit", ["fiddler:muon", "tag:VocabSize=600"])
def test_a_config_that_the_checkpoint_does_not_fit_is_not_recorded(
    edit, finished, tmp_path, capsys
):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert main(["train", *flags(*TINY, edit), f"--run_dir={copy}", "--allow_config_change"]) == 2
    assert "belongs to another" in capsys.readouterr().err
    assert load_run(str(copy)) == tiny()


def test_a_directory_alone_resumes_its_run(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert main(["train", f"--run_dir={copy}"]) == 0
    assert f"run {copy}, config {fingerprint(tiny())[:8]}" in capsys.readouterr().out
    assert load_run(str(copy)) == tiny()
    assert len(metrics(copy)) == 20


def test_edits_without_a_base_are_told_the_runs_own(finished, tmp_path, capsys):
    copy = shutil.copytree(finished, tmp_path / "a copy")
    command = ["train", f"--run_dir={copy}", "--config=set:steps=22"]
    assert main(command) == 2
    told, advice = capsys.readouterr().err.splitlines()
    assert "without a base, --config edits config:llama3_debug" in told
    assert "--allow_config_change" not in told
    program, *right = shlex.split(advice.removeprefix("  try: "))
    assert program == "nanigpt"
    assert main(right) == 0
    assert len(metrics(copy)) == 22


@pytest.mark.parametrize("flag", ["--run_dir", "--run"])
def test_a_recorded_config_is_looked_at(flag, finished, capsys):
    given = [f"{flag}={finished}", "--config=set:seed=7"]
    edited = tiny("set:seed=7")
    assert main(["fingerprint", *given]) == 0
    assert capsys.readouterr().out.strip() == fingerprint(edited)
    assert main(["check", *given]) == 0
    assert fingerprint(edited) in capsys.readouterr().out
    assert main(["show", "--format=flat", *given]) == 0
    assert "\nseed = 7\n" in capsys.readouterr().out
    assert main(["count", "--format=json", given[0]]) == 0
    counts = json.loads(capsys.readouterr().out)["parameters"]
    assert counts["total"] == sum(p.numel() for p in built_model(tiny()).parameters())


def test_eval_gives_what_training_logged(finished):
    result = json.loads(succeed(here("eval", f"--run_dir={finished}")).splitlines()[-1])
    last = metrics(finished)[-1]
    assert result == {k: last[k] for k in ("step", "val_loss", "val_bits_per_byte")}


@pytest.mark.parametrize(
    "edit, told",
    [
        ("fiddler:float8", "float8='tensorwise': expected a CUDA device"),
        ("tag:AttentionCore=@varlen_attention()", "VarLen's kernel needs a CUDA device"),
        ("set:device=cuda", None),
        ("fiddler:expert_parallel(2)", None),
    ],
)
def test_a_run_of_gpus_is_evaluated_on_a_cpu(
    edit, told, finished, tmp_path, monkeypatch, capsys, caplog
):
    """In the compute dtype, with attention that any device has, which is told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "checkpoints").symlink_to(finished / "checkpoints")
    (tmp_path / "config.json").write_text(dump(tiny(edit)))
    assert main(["eval", f"--run_dir={tmp_path}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["val_loss"] == pytest.approx(metrics(finished)[-1]["val_loss"], rel=1e-6)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    if told is None:
        assert not warned
    else:
        assert told in warned[0] and warned[0].endswith("with Float8=None, AttentionCore=None")
    assert len(warned) <= 1


def test_a_run_of_another_version_says_what_to_do(tmp_path):
    cfg = tiny()
    del cfg.loader  # which was no argument once
    (tmp_path / "config.json").write_text(dump(cfg))
    message = r"another version.*: loader: required by Trainer.*--allow_config_change"
    with pytest.raises(UsageError, match=message):
        recorded_config(types.SimpleNamespace(run_dir=str(tmp_path)))


def test_eval_on_two_processes(finished):
    out = succeed(torchrun(2, "-m", "nanigpt", "eval", f"--run_dir={finished}"))
    result = json.loads(out.splitlines()[-1])
    assert result["val_loss"] == pytest.approx(metrics(finished)[-1]["val_loss"], rel=1e-5)


def test_generate(finished):
    command = ("generate", f"--run_dir={finished}", "--prompt=def ", "--max_new_tokens=40")
    greedy = succeed(nanigpt(*command, "--temperature=0"))
    assert greedy.startswith("def ")
    sampled = [succeed(here(*command, f"--seed={seed}", "--top_k=50")) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_killed_at_any_step_the_same_command_goes_on(finished, tmp_path):
    path = tmp_path / "killed"
    command = (
        "-m",
        "nanigpt",
        "train",
        *flags(*TINY),
        f"--run_dir={path}",
        *flags("set:metrics.log_interval=1"),
    )
    for wanted in (4, 13):  # before the first checkpoint, and after it
        process = start(*command)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and process.poll() is None:
            if (path / "metrics.jsonl").exists() and len(metrics_so_far(path)) >= wanted:
                break
            time.sleep(0.01)
        assert process.poll() is None, "ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    out = succeed(finish(start(*command), 120))
    assert "resuming after step 10" in out
    assert [row["step"] for row in metrics(path)] == list(range(1, 21))
    assert [row["loss"] for row in metrics(path)] == [row["loss"] for row in metrics(finished)]
    assert len((path / "launches.jsonl").read_text().splitlines()) == 3


def metrics_so_far(path):
    return (path / "metrics.jsonl").read_text().splitlines()


def test_the_default_run_directory_is_named_after_the_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = flags(*TINY, "fiddler:steps(2)")
    out = succeed(here("train", *short))
    assert out.startswith("run runs/llama3_debug, config ")
    again = succeed(here("train", *short))
    assert "already at step 2 of 2" in again
    other = succeed(here("train", *short, *flags("set:seed=1")))
    assert other.startswith("run runs/llama3_debug-")


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_text_and_tokenizer_of_the_users_own(tmp_path, kind, text_file):
    tokenizer = tmp_path / "tokenizer.json"
    train_bpe(tokenizer)
    corpus = text_file
    if kind == "jsonl":
        corpus = tmp_path / "rows.jsonl"
        rows = [json.dumps({"text": line}) for line in text_file.read_text().splitlines()]
        corpus.write_text("\n".join(rows))
    edits = (
        f"set:data.corpus.path={corpus}",
        f"set:data.tokenizer=@huggingface_tokenizer('{tokenizer}')",
        "fiddler:steps(3)",
    )
    out = succeed(here("train", *flags(*TINY, *edits), f"--run_dir={tmp_path / 'run'}"))
    assert "validation loss" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "nanigpt: unknown command 'trian'; did you mean 'train'?"),
        (["train", "--config=config:llama3_debg"], "nanigpt: --config=config:llama3_debg: unknown recipe 'llama3_debg'; did you mean 'llama3_debug'"),
        (["train", "--config=set:optimizer.lrr=1"], "nanigpt: --config=set:optimizer.lrr=1: optimizer (adamw) has no 'lrr'; did you mean 'lr'?"),
        (["train", "--rum=x"], "nanigpt: train: Unknown command line flag 'rum'. Did you mean: run"),
        (["eval", "--run_dir=/nowhere/run"], "nanigpt: --run_dir: /nowhere/run: no run there"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_message_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_message(here(*arguments), message, tmp_path)


def test_a_mistake_of_a_process_is_its_only_message(tmp_path):
    """No import and no end of a process adds to it."""
    done = nanigpt("train", "--config=set:data.corpus.path=/nowhere", cwd=tmp_path)
    told = "nanigpt: data.corpus.path='/nowhere': expected a file, a folder or a glob"
    assert_one_message(done, told, tmp_path)


def assert_one_message(done, message, tmp_path):
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 + ("\n  try: " in done.stderr), done.stderr
    assert done.stderr.startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_generating_past_the_context_is_refused(finished):
    done = here("generate", f"--run_dir={finished}", "--max_new_tokens=1000")
    assert done.returncode == 2
    assert "max_new_tokens=1000: expected at most 63 after" in done.stderr


def test_fingerprint_of_a_run_and_of_its_command(finished):
    by_name = succeed(here("fingerprint", *flags(*TINY)))
    assert by_name == succeed(here("fingerprint", f"--config=run:{finished}"))
    assert by_name != succeed(here("fingerprint", *flags(*TINY, "tag:Seed=1")))


def test_check():
    out = succeed(here("check", "--config=config:llama3_405b"))
    assert out.startswith("no problems; 405,853,388,800 parameters")
    done = here("check", *flags("set:data.sequence_length=0", "set:evaluations[val].interval=0"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "nanigpt: 2 problems:"
    assert (
        "  data.sequence_length=0: expected more than 0  <- --config=set:data.sequ" in done.stderr
    )
    assert "  evaluations['val'].interval=0: expected at least 1  <- --config=" in done.stderr


def test_show_and_diff(finished):
    out = succeed(here("show", f"--config=run:{finished}"))
    assert "layers[0:2]: TransformerBlock  x2" in out
    command = " ".join([*TINY, "tag:LearningRate=0.5"])
    assert succeed(here("diff", str(finished), command)) == "optimizer.lr: 0.001 -> 0.5\n"
    done = here("diff", "config:llama3_debug")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "nanigpt: diff: expected two configs, not 1\n  try: nanigpt diff "
    )
    spaced = "config:llama3_debug 'set:optimizer.betas=(0.9, 0.99)'"
    assert succeed(here("diff", "config:llama3_debug", spaced)) == (
        "optimizer.betas: (0.9, 0.95) -> (0.9, 0.99)\n"
    )


def test_help_lists_recipes_and_fiddlers():
    out = succeed(here("--help"))
    for name in ("train", "llama3_405b", "debug_scale", "generate", "sweep"):
        assert name in out
    assert "--config" in succeed(here("train", "--help"))


def test_a_mistake_imports_nothing_heavy_beyond_torch():
    """What makes an answer fast; tools/bench/startup.py measures how fast."""
    code = """
import sys
from nanigpt.cli.main import main
assert main(["train", "--config=config:lama"]) == 2
heavy = ["datasets", "transformers", "tokenizers", "tensorboard", "pandas", "pyarrow",
         "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint"]
print([name for name in heavy if name in sys.modules])
"""
    assert succeed(finish(start("-c", code), 60)).splitlines()[-1] == "[]"


def test_a_second_process_on_the_same_run_is_refused(tmp_path):
    path = tmp_path / "run"
    command = ("train", *flags(*TINY, "fiddler:steps(400)"), f"--run_dir={path}")
    first = start("-m", "nanigpt", *command)
    try:
        deadline = time.monotonic() + 60
        while not (path / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = nanigpt(*command)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert second.returncode == 2
    assert f"process {first.pid} trains there now" in second.stderr


def test_a_run_goes_on_when_its_reader_leaves(tmp_path):
    process = start("-m", "nanigpt", "train", *flags(*TINY), f"--run_dir={tmp_path / 'run'}")
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    finish(process, 60)
    assert process.returncode == 0
    assert len(metrics(tmp_path / "run")) == 20


def test_an_unwritable_place_is_named(monkeypatch):
    done = here("train", *flags(*TINY), "--run_dir=/proc/run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "nanigpt: --run_dir=/proc/run: cannot be written" in done.stderr
    monkeypatch.setenv("NANIGPT_CACHE", "/proc/cache")
    done = here("train", *flags(*TINY))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "name another folder in NANIGPT_CACHE" in done.stderr


def test_a_mistake_of_one_rank_is_printed_by_it(monkeypatch, capsys):
    import torch

    from nanigpt.cli.main import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *flags(*TINY)]) == 2
    assert "local rank 1 has no GPU: this node has 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--temperature=-1", "temperature=-1.0: expected 0 (greedy) or more"),
        ("--temperature=nan", "temperature=nan"),
        ("--top_k=0", "top_k=0"),
        ("--seed=-1", "seed"),
        ("--prompt=\udcff", "expected UTF-8 text"),  # which Python makes of the byte FF
    ],
)
def test_wrong_sampling_is_refused(finished, argument, message):
    done = here("generate", f"--run_dir={finished}", "--max_new_tokens=5", argument)
    assert done.returncode == 2
    assert message in done.stderr
