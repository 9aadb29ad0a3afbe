"""The benchmark of a GPU, as far as it goes without one."""

import itertools
import sys
from pathlib import Path

import pytest

from nanigpt.config.check.build import build
from nanigpt.config.compose.flag import compose


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools" / "bench"))
    import gpu

    yield gpu
    for name in ("gpu", "harness"):
        sys.modules.pop(name)


def test_every_rung_is_a_run_of_its_own(gpu):
    assert set(gpu.FIRST) < set(gpu.CHANGES)
    seen = []
    for directives in gpu.ladder().values():
        trainer = build(compose(["config:llama3_1b", "set:device=cuda", *directives]))
        trainer.check(1)
        block = trainer.model.layers[0]
        seen.append(
            (
                trainer.optimizer.keywords["kernel"],
                block.attention.core.kernels,
                type(trainer.task.loss).__name__,
                trainer.parallelizer.compile is not None,
                block.activation_checkpointing,
                block.attention.wq.float8,
            )
        )
    assert seen[0] == ("foreach", ("flash",), "CrossEntropy", False, "full", None)
    assert seen[-1] == ("fused", ("cudnn", "flash"), "LinearCrossEntropy", True, "none", "rowwise")
    for before, after in itertools.pairwise(seen):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


def test_a_rung_that_failed_tells_why(gpu):
    advice = "\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n"
    for raised in (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "torch._inductor.exc.InductorError: CompilationError: no",
        "RuntimeError: no",
    ):
        assert gpu._reason(f"Traceback\n  File x\n{raised}{advice}") == raised
    assert gpu._reason("Killed\n") == "Killed"
    assert gpu._reason("") == "no message"
