"""Measure peak memory and time of the loss, with all logits at once or chunk by chunk.

    ./tools/run python tools/bench/loss.py
    ./tools/run python tools/bench/loss.py --chunk_size=256
    ./tools/run python tools/bench/loss.py --device=cuda --dim=4096 --tokens=8192 --json=loss.json

It measures one forward and backward pass of head and loss, given hidden states. A repetition
measures each variant once, in its own process with one thread, in float32 on a CPU and in bfloat16
on a GPU. The script prints medians and ratios to the plain loss. Times are CPU seconds of the
process on a CPU, and wall seconds on a GPU. Memory is the increase of the peak; on a CPU, a pass
with a few tokens comes first, so that the weight's gradient exists already.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

VARIANTS = ("plain", "chunked")


def measure(
    variant: str, *, device: str, tokens: int, dim: int, vocab: int, chunk_size: int
) -> dict[str, float]:
    """Measure seconds and peak bytes of one pass in this process."""
    import torch

    from nanigpt.models.init import TruncatedNormal
    from nanigpt.models.linear import Linear
    from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy

    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    random = torch.Generator(device).manual_seed(0)
    head = Linear(in_dim=dim, out_dim=vocab, initializer=TruncatedNormal(std=0.02))
    weight = torch.randn(vocab, dim, device=device, generator=random).mul_(0.02)
    head.weight = torch.nn.Parameter(weight.to(dtype))
    x = torch.randn(1, tokens, dim, device=device, dtype=dtype, generator=random)
    labels = torch.randint(vocab, (1, tokens), device=device, generator=random)
    loss = LinearCrossEntropy(chunk_size=chunk_size) if variant == "chunked" else CrossEntropy()
    del weight

    def step(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        head.weight.grad = None
        value = loss(head, x.detach().requires_grad_(), labels) / labels.numel()
        value.backward()
        return value.detach()

    if device == "cpu":
        step(x[:, :16], labels[:, :16])
        before, start = _peak(), time.process_time()
        value = step(x, labels)
        seconds, memory = time.process_time() - start, _peak() - before
    else:
        for _ in range(3):
            step(x, labels)
        head.weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        for _ in range(10):
            value = step(x, labels)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - start) / 10
        memory = torch.cuda.max_memory_allocated() - before
    return {"seconds": seconds, "bytes": memory, "loss": value.item()}


def _peak() -> int:
    """Return the peak memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_own_process(variant: str, arguments: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments, f"--measure={variant}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--chunk_size", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = ("device", "tokens", "dim", "vocab", "chunk_size")
    sizes = {name: getattr(given, name) for name in names}
    if given.measure:
        print(json.dumps(measure(given.measure, **sizes)))
        return
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    load = os.getloadavg()[0]
    runs = [{v: in_own_process(v, arguments) for v in VARIANTS} for _ in range(given.repetitions)]
    medians = {
        v: {key: statistics.median(run[v][key] for run in runs) for key in ("seconds", "bytes")}
        for v in VARIANTS
    }
    print(
        f"{given.tokens} tokens, chunks of {given.chunk_size}, dim {given.dim}, "
        f"vocabulary {given.vocab}, {given.device}, median of {given.repetitions}, "
        f"load average {load:.2f}"
    )
    plain = medians["plain"]
    for variant, row in medians.items():
        print(
            f"{variant:<8} {row['bytes'] / 1e9:6.2f} GB {row['bytes'] / plain['bytes']:5.2f}x "
            f"{row['seconds']:8.3f} s {row['seconds'] / plain['seconds']:5.2f}x"
        )
    if given.json:
        result = sizes | {"load_average": load, "medians": medians, "runs": runs}
        given.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
