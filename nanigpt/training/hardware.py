"""Look up the device's peak arithmetic and memory bandwidth, and measure its memory in use."""

import re
import resource
import sys
import time
from typing import NamedTuple

import torch


class Peaks(NamedTuple):
    """Limits of a device, without sparsity.

    Attributes:
        flops: FLOP/s of matrix products in bfloat16.
        float8_flops: FLOP/s of matrix products in float8, or None if the device has no such
            arithmetic.
        bandwidth: Bytes per second between the device and its memory.
    """

    flops: float
    float8_flops: float | None
    bandwidth: float


# Keys match the driver's whole name: "NVIDIA GH200 480GB" is no "NVIDIA H200", and a MIG slice,
# whose name is longer, has only a part of its device. The numbers come from the vendors' data
# sheets.
_DEVICES = {
    r"(NVIDIA )?A100-(SXM4|SXM|PCIE|PCI)-40GB": Peaks(312e12, None, 1.555e12),
    r"(NVIDIA )?A100-(SXM4|SXM)-80GB": Peaks(312e12, None, 2.039e12),
    r"(NVIDIA )?A100[ -](80GB PCIe|PCIE-80GB)": Peaks(312e12, None, 1.935e12),
    r"NVIDIA H100 80GB HBM3": Peaks(989.4e12, 1978.9e12, 3.35e12),  # SXM
    r"NVIDIA H100 PCIe": Peaks(756e12, 1513e12, 2.0e12),
    r"NVIDIA H100 NVL": Peaks(835e12, 1671e12, 3.9e12),
    r"NVIDIA H200": Peaks(989.4e12, 1978.9e12, 4.8e12),
    r"NVIDIA H200 NVL": Peaks(836e12, 1671e12, 4.8e12),
    r"NVIDIA B200": Peaks(2250e12, 4500e12, 7.7e12),
    r"NVIDIA GB200": Peaks(2500e12, 5000e12, 8.0e12),  # one of the superchip's GPUs
    r"NVIDIA L40S": Peaks(362e12, 733e12, 0.864e12),
    r"AMD Instinct MI300X( OAM| VF)?": Peaks(1307.4e12, 2614.9e12, 5.3e12),
    r"AMD Instinct MI325X( OAM| VF)?": Peaks(1307.4e12, 2614.9e12, 6.0e12),
}


def peaks_of(name: str) -> Peaks | None:
    """Return the peaks of the device that the driver calls `name`, or None if it is unknown."""
    return next((p for pattern, p in _DEVICES.items() if re.fullmatch(pattern, name)), None)


def device_peaks(device: torch.device) -> Peaks | None:
    """Return the peaks of `device`, or None if it is unknown, as every CPU is."""
    return peaks_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def measured_flops(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.1) -> float:
    """Measure FLOP/s of the fastest of several square matrix products.

    Together they take `seconds`. The result is below the data sheet's peak. On a CPU that others
    use, it is below the CPU's own limit.
    """
    cuda = device.type == "cuda"
    n = 8192 if cuda else 512
    own = torch.Generator(device).manual_seed(0)  # leaves the run's random numbers unchanged
    a, b = (torch.rand(n, n, device=device, dtype=dtype, generator=own) for _ in range(2))
    best, end = float("inf"), 0.0
    torch.mm(a, b)  # the first product sets the library up
    begin = time.perf_counter()
    while end - begin < seconds:
        if cuda:
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b)
        if cuda:
            torch.cuda.synchronize(device)
        end = time.perf_counter()
        best = min(best, end - start)
    return 2 * n**3 / best


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
