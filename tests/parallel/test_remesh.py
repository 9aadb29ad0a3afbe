"""A run goes on under another mesh: checkpoints know the whole model, not the ranks."""

import shutil

import pytest

from nanigpt.config.compose.flag import compose
from tests.support import TINY, flags, here, metrics, succeed, torchrun, train

SHORT = (
    "fiddler:steps(10)",
    "set:checkpointer.interval=5",
    "set:evaluations[val].n_samples=4",
    "set:task.sampler.max_new_tokens=2",
)
TIED = ("config:llama3_1b", "fiddler:debug_scale")
EXPERTS = (
    *("config:qwen3_moe_debug", "fiddler:debug_scale"),
    "set:model.layers[*].feed_forward.router.balance_rate=0.001",
)


def forget_the_last_checkpoint(path) -> None:
    shutil.rmtree(path / "checkpoints" / "step_00000010")


def assert_equal_curves(rows, expected):
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=2e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("base", "meshes"),
    [
        (TINY, ["fiddler:pipeline(2, '1F1B', 4)", "fiddler:tensor_parallel(2)"]),
        (TIED, ["fiddler:pipeline(2, 'GPipe', 8)", "fiddler:fsdp"]),
        (EXPERTS, ["fiddler:expert_parallel(2)"]),
    ],
    ids=[
        "pipeline to tensor parallel",
        "tied: pipeline to sharded",
        "experts divided to one process",
    ],
)
def test_a_run_goes_on_under_another_mesh(base, meshes, tmp_path):
    expected = train(compose([*base, *SHORT]), tmp_path / "one")
    run = tmp_path / "run"
    for mesh in meshes:
        arguments = ["train", *flags(*base, *SHORT, mesh), f"--run_dir={run}"]
        out = succeed(torchrun(2, "-m", "nanigpt", *arguments))
        forget_the_last_checkpoint(run)
    assert ("resuming after step 5" in out) == (len(meshes) > 1)
    assert_equal_curves(metrics(run), expected)
    # One process goes on, too, and looks at what many trained.
    out = succeed(here("train", *flags(*base, *SHORT), f"--run_dir={run}"))
    assert "resuming after step 5" in out
    assert_equal_curves(metrics(run), expected)
    assert '"step": 10' in succeed(here("eval", f"--run_dir={run}"))
