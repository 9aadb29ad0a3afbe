"""The same run on a GPU, where there is one."""

import pytest

from tests.support import tiny, train


@pytest.mark.cuda
def test_cuda_gives_the_losses_of_the_cpu(tmp_path):
    # Samples are the same on every device, initial weights are other draws of the same distribution,
    # since each kind of device has a random generator of its own: close, not equal.
    on_cpu, on_cuda = (
        train(tiny("fiddler:steps(5)"), tmp_path / device, device=device)
        for device in ("cpu", "cuda")
    )
    for cpu, cuda in zip(on_cpu, on_cuda, strict=True):
        assert cuda["loss"] == pytest.approx(cpu["loss"], rel=0.05)
    assert on_cuda[-1]["loss"] < on_cuda[0]["loss"]


@pytest.mark.cuda
def test_bf16_follows_fp32_on_cuda(tmp_path):
    curves = {
        dtype: train(tiny(f"tag:ComputeDType={dtype}"), tmp_path / dtype, device="cuda")
        for dtype in ("float32", "bfloat16")
    }
    for exact, rounded in zip(*curves.values(), strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
