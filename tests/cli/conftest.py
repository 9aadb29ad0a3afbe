"""A sweep whose trials are a stand-in for training, for tests that look at the sweep only."""

import pytest

from nanigpt.cli.main import main
from nanigpt.cli.sweeping import pool
from tests.support import TINY, flags

# Takes a trial's command line; its loss is best at a learning rate of 1e-3.
STAND_IN = """
import json, math, pathlib, sys, time
flags = [a.partition("=") for a in sys.argv[1:]]
rates = [v for n, _, v in flags if v.startswith("tag:LearningRate=")]
rate = float(rates[-1].split("=")[1]) if rates else 1e-3
run = pathlib.Path([v for n, _, v in flags if n == "--run_dir"][0])
with open(run / "launches.jsonl", "a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + "\\n")
if rate > 1:
    sys.exit(f"a rate of {rate} is too much")
with open(run / "metrics.jsonl", "w") as stream:
    for step in range(1, 21):
        loss = abs(math.log10(rate) + 3) + 1 / step if rate < 0.5 else math.nan
        row = {"step": step, "loss": loss, "val_loss": loss, "ms_per_step": 50.0}
        stream.write(json.dumps(row | {"tokens": step * 512}) + "\\n")
        stream.flush()
        if rate == 0.7 and step == 5:
            sys.exit("the loss is not finite: the run stops")
        if (run.parent / "slow").exists():
            time.sleep(0.15)
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Runs a sweep of the stand-in; returns exit status, output and errors."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(pool, "PROGRAM", [str(program)])

    def run(*arguments, base=TINY):
        status = main(["sweep", *flags(*base), f"--dir={tmp_path / 'sweep'}", *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    run.path = tmp_path / "sweep"
    return run
