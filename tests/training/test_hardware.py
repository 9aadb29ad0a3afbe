"""The table of devices, and MFU."""

import pytest
import torch

from nanigpt.config.check.build import build
from nanigpt.errors import UsageError
from nanigpt.training.hardware import device_peaks, measured_flops, peaks_of
from nanigpt.training.run_directory import RunDirectory
from tests.support import QUICK, metrics, tiny, train


@pytest.mark.parametrize(
    "name, tflops, float8, terabytes",
    [
        ("NVIDIA A100-SXM4-40GB", 312, None, 1.555),
        ("A100-SXM4-40GB", 312, None, 1.555),
        ("NVIDIA A100-SXM4-80GB", 312, None, 2.039),
        ("NVIDIA A100 80GB PCIe", 312, None, 1.935),
        ("NVIDIA H100 80GB HBM3", 989.4, 1978.9, 3.35),
        ("NVIDIA H100 PCIe", 756, 1513, 2.0),
        ("NVIDIA H100 NVL", 835, 1671, 3.9),
        ("NVIDIA H200", 989.4, 1978.9, 4.8),
        ("NVIDIA B200", 2250, 4500, 7.7),
        ("NVIDIA GB200", 2500, 5000, 8.0),
        ("NVIDIA L40S", 362, 733, 0.864),
        ("AMD Instinct MI300X", 1307.4, 2614.9, 5.3),
        ("AMD Instinct MI325X", 1307.4, 2614.9, 6.0),
    ],
)
def test_devices_are_known_by_the_names_their_drivers_give(name, tflops, float8, terabytes):
    peaks = peaks_of(name)
    assert peaks.flops == pytest.approx(tflops * 1e12)
    assert peaks.float8_flops == (float8 and pytest.approx(float8 * 1e12))
    assert peaks.bandwidth == pytest.approx(terabytes * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GH200 480GB",  # has H200 in its name
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",  # a seventh of an H100
        "NVIDIA A10",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 4090",
        "AMD Instinct MI300A",
        "",
    ],
)
def test_other_devices_are_not_guessed(name):
    assert peaks_of(name) is None


def test_a_cpu_has_no_peak_but_a_measured_one():
    cpu = torch.device("cpu")
    assert device_peaks(cpu) is None
    before = torch.get_rng_state()
    assert 1e8 < measured_flops(cpu, torch.float32, seconds=0.02) < 1e13
    assert torch.equal(torch.get_rng_state(), before)


def test_mfu_is_flops_per_token_and_device_over_the_peak(tmp_path):
    cfg = tiny("fiddler:steps(2)", *QUICK, "set:metrics.peak_flops=1e15")
    flops = build(cfg).model.flops_per_token(64)
    for row in train(cfg, tmp_path):
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * flops / 1e15)


def test_mfu_is_relative_to_what_was_measured(tmp_path):
    rows = train(tiny("fiddler:steps(2)", *QUICK, "set:metrics.peak_flops=measured"), tmp_path)
    assert all(0 < row["mfu"] < 1 for row in rows)


def test_mfu_over_100_percent_ends_the_run_and_loses_no_row(tmp_path):
    cfg = tiny("fiddler:steps(4)", *QUICK, "set:metrics.peak_flops=1000")
    message = (
        r"MFU is .*%.*tokens/s per device x .* FLOPs per token = .* FLOP/s, and the peak of "
        r"metrics.peak_flops is 1000\. .*set metrics.peak_flops"
    )
    with pytest.raises(UsageError, match=message):
        train(cfg, tmp_path)
    (row,) = metrics(tmp_path)
    assert row["step"] == 1 and "mfu" not in row


def test_mfu_over_100_percent_at_a_checkpoint_loses_no_step(tmp_path):
    cfg = tiny("fiddler:steps(1)", *QUICK, "set:metrics.peak_flops=1000")
    with pytest.raises(UsageError, match="MFU is"):
        train(cfg, tmp_path)
    assert build(cfg).checkpointer.latest(RunDirectory(tmp_path)) is not None


@pytest.mark.parametrize("value", ["-1", "0", "guessed", "1e999"])
def test_no_other_peak_is_taken(value):
    with pytest.raises(UsageError, match="peak_flops"):
        build(tiny(f"set:metrics.peak_flops={value}"))
