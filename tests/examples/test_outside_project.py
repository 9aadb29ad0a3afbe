"""A project outside this one: installed, then used from the command line and on several ranks."""

import json
import subprocess
import sys

import pytest

from tests.examples.conftest import EXAMPLE
from tests.examples.outside_runs import RECIPES, rows
from tests.support import flags

DENOISER, LANGUAGE = RECIPES["denoiser"], RECIPES["language"]


def run(environment, *arguments, timeout=240):
    """Run Python to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(environment, *wanted):
    """Run commands of nanigpt in one process; return what each that must succeed printed."""
    script = ("-m", "tests.examples.outside_commands")
    printed = []
    for status, out, err in json.loads(run(environment, *script, json.dumps(wanted))):
        assert status == 0, out + err
        printed.append(out)
    return printed


def test_its_own_tests_pass(outside):
    run(outside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null",
        str(EXAMPLE / "tests"))  # fmt: skip


@pytest.fixture(scope="module")
def trained(outside, tmp_path_factory):
    """Train its recipes on one process, and in every mesh of two."""
    folder = tmp_path_factory.mktemp("runs")
    script = ("-m", "tests.examples.outside_runs", str(folder))
    run(outside, *script)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(outside, *launcher, *script)
    return folder


@pytest.mark.parametrize("mesh", ["fsdp", "tp", "unsplit"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_in_a_mesh_are_those_of_one_process(trained, recipe, mesh):
    expected, found = rows(trained, recipe, "one"), rows(trained, recipe, mesh)
    assert len(found) == len(expected) > 5
    for want, got in zip(expected, found, strict=True):
        for name in {"loss", "grad_norm", "val_loss"} & want.keys():
            assert got[name] == pytest.approx(want[name], rel=1e-5), (want["step"], name)


def test_its_recipes_are_used_from_the_command_line(outside, tmp_path):
    run_flag = f"--run_dir={tmp_path / 'run'}"
    once = flags(*DENOISER, "set:checkpointer.interval=6")
    longer = flags(*DENOISER[:1], "set:steps=16", *DENOISER[2:], "set:checkpointer.interval=6")
    other = "config:outside_denoiser(width=64)"
    printed = commands(
        outside,
        ["check", "--ranks=2", *flags(*LANGUAGE, "tag:TensorParallel=2")],
        ["count", "--format=json", *once],
        ["count", "--format=json", *flags(*LANGUAGE)],
        ["show", *flags(*LANGUAGE)],
        ["diff", "config:outside_denoiser", other],
        ["train", run_flag, *once],
        ["train", run_flag, *longer],
        ["eval", run_flag],
        ["check", *flags("config:llama3_debug", "fiddler:relu_squared_networks")],
    )
    check, count, count_text, show, diff, first, resumed, evaluated, fiddled = printed
    assert check.startswith("no problems")
    counted = json.loads(count)
    assert counted["parameters"]["total"] == 231_744
    # Each product of a sample's row with a weight, forward and twice backward; one less for the
    # image and the time's features, which need no gradient.
    width, pixels = 128, 64
    weights = 2 * (2 * width * 2 * width + 2 * width * width) + width * pixels
    needless = width * pixels + width * width
    assert counted["flops_per_sample"] == 6 * weights + 4 * needless
    assert json.loads(count_text)["flops_per_token"] > 6 * 90_000
    assert "attention: LearnedPositionAttention" in show
    assert "tokenizer: AsciiTokenizer" in show
    assert diff == "model.width: 128 -> 64\n"
    assert "--- sampled image" in first
    assert "resuming after step 12" in resumed
    table = [line.split(",") for line in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    assert [row[0] for row in table] == ["step", *map(str, range(1, 17))]
    assert json.loads(evaluated)["val_loss"] == pytest.approx(float(table[-1][2]))
    assert fiddled.startswith("no problems")
