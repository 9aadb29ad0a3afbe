"""Measure tokens per second, MFU and memory on one CUDA GPU, one change after the other.

    ./tools/run python tools/bench/gpu.py --json out.json
    ./tools/run python tools/bench/gpu.py --recipes llama3_3b --minutes 5

Each rung of the ladder runs in its own process: the recipe's model with sequences of 4096 tokens,
and one local batch in a step. A rung adds one change to the rung above it. The most important rungs
run first, since all rungs of two recipes take longer than ten minutes. MFU counts 6 N_matmul + 12 L
d S FLOPs per token, relative to the dense bf16 peak in the device's data sheet, also for products
in float8. The script also prints the fastest bf16 matrix product that it measured, as a share of
that peak, and names rungs that failed or did not run in time.
"""

import argparse
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

WARM_UP, STEPS = 4, 8
MFU = "6 N_matmul + 12 L d S FLOPs per token, over the dense bf16 peak of the data sheet"

# Directives of the first rung.
BEGINNING = [
    "set:parallelizer.compile=None",
    "set:task.loss=@cross_entropy()",
    "set:optimizer.kernel=foreach",
    "tag:AttentionCore=@scaled_dot_product(kernels=('flash',))",
    "tag:ActivationCheckpointing=full",
]
# Changes that each rung adds.
CHANGES = {
    "eager, foreach AdamW, flash, plain loss, recomputation full": [],
    "+ fused AdamW": ["set:optimizer.kernel=fused"],
    "+ cuDNN attention": ["tag:AttentionCore=@scaled_dot_product(kernels=('cudnn','flash'))"],
    "+ chunked loss": ["set:task.loss=@linear_cross_entropy()"],
    "+ compiled blocks and loss": ["fiddler:compile"],
    "+ recomputation selective": ["tag:ActivationCheckpointing=selective"],
    "+ recomputation none": ["tag:ActivationCheckpointing=none"],
    "+ float8 tensorwise": ["fiddler:float8('tensorwise')"],
    "+ float8 rowwise instead": ["tag:Float8=None", "fiddler:float8('rowwise')"],
}
# Rungs that run first for all recipes: eager, compiled, and float8.
FIRST = (
    "+ chunked loss",
    "+ recomputation none",
    "+ float8 tensorwise",
    "+ float8 rowwise instead",
)
# Recipe -> sequences of 4096 tokens in a step.
RECIPES = {"llama3_1b": 8, "llama3_3b": 4}


def ladder() -> dict[str, list[str]]:
    """Return the rungs, each with all of its directives."""
    rungs, directives = {}, list(BEGINNING)
    for name, change in CHANGES.items():
        directives = [*directives, *change]
        rungs[name] = directives
    return rungs


def run(recipe: str, directives: list[str], batch: int, length: int, device: str) -> None:
    """Train some steps in this process, and print the figures."""
    import torch

    from nanigpt.config.check.build import build
    from nanigpt.config.compose.flag import compose
    from nanigpt.parallel.world import start_world
    from nanigpt.training.hardware import device_peaks
    from nanigpt.training.loop import rows
    from nanigpt.training.run_directory import RunDirectory
    from nanigpt.training.setup import resume

    steps = WARM_UP + STEPS + 1  # the last one, which is validated, is not reached
    edits = [f"tag:SequenceLength={length}", f"tag:GlobalBatchSize={batch}"]
    edits += [f"tag:LocalBatchSize={batch}", f"tag:Steps={steps}", "set:schedule.warmup_steps=1"]
    cfg = compose([f"config:{recipe}", *edits, *directives])
    cfg.device = device
    cfg.evaluations["val"].interval = cfg.checkpointer.interval = 10**9
    trainer, times, world = build(cfg), [], start_world(device)
    flops = trainer.model.flops_per_token(length)
    with tempfile.TemporaryDirectory() as path:
        prepared = trainer.prepare(world, RunDirectory(Path(path)))
        for row in rows(resume(prepared), prepared):
            if row["step"] not in (WARM_UP, WARM_UP + STEPS):
                continue
            loss = float(row["loss"])  # waits for the device; other steps do not
            times.append(time.perf_counter())
            if len(times) == 2:
                break
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
    seconds = (times[1] - times[0]) / STEPS
    speed, peaks = batch * length / seconds, device_peaks(world.device)
    result = {
        "tokens_per_second": speed,
        "ms_per_step": 1000 * seconds,
        "mfu": flops * speed / peaks.flops if peaks else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0,
        "loss": loss,
    }
    harness.figures(result)


def matmul(device: str) -> dict[str, float | str | None]:
    """Measure the device's fastest bf16 product in FLOP/s, and compare it with the data sheet."""
    import torch

    from nanigpt.training.hardware import device_peaks, measured_flops

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    peaks = device_peaks(torch.device(device))
    measured = measured_flops(torch.device(device), dtype, seconds=1.0)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "peak_flops": peaks.flops if peaks else None,
        "matmul_flops": measured,
        "share_of_peak": measured / peaks.flops if peaks else None,
    }


def attention_speeds(device: str) -> dict[str, float | str]:
    """Measure milliseconds of causal attention, forward and backward, for each kernel."""
    import torch

    from nanigpt.models.attention_core import ScaledDotProduct

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    speeds: dict[str, float | str] = {}
    shape = (4, 4096) if device == "cuda" else (1, 128)
    for kernel in ("cudnn", "flash", "efficient"):
        q = torch.randn(*shape, 32, 64, device=device, dtype=dtype, requires_grad=True)
        k, v = (
            torch.randn(*shape, 8, 64, device=device, dtype=dtype, requires_grad=True)
            for _ in range(2)
        )
        core = ScaledDotProduct(kernels=(kernel,))
        try:
            for i in range(13):
                if i == 3:
                    _wait(device)
                    start = time.perf_counter()
                core(q, k, v).sum().backward()
            _wait(device)
            speeds[kernel] = 1000 * (time.perf_counter() - start) / 10
        except RuntimeError as error:  # the device has no such kernel
            speeds[kernel] = str(error).partition("\n")[0]
    return speeds


def _wait(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--rungs", help="Run only rungs whose name contains this text.")
    parser.add_argument("--minutes", type=float, default=9.0, help="Start no rung after this time.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batch", type=int, help="Use this number of sequences in a step.")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="Write the figures to this file.")
    parser.add_argument("--one", nargs=2, metavar=("RECIPE", "RUNG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    batches = {name: arguments.batch or RECIPES.get(name, 1) for name in arguments.recipes}
    if arguments.one:
        recipe, rung = arguments.one
        if recipe == "kernels":
            speeds = {"attention_ms": attention_speeds(arguments.device)}
            harness.figures(matmul(arguments.device) | speeds)
            return
        batch = arguments.batch or RECIPES.get(recipe, 1)
        run(recipe, ladder()[rung], batch, arguments.length, arguments.device)
        return
    begin, results = time.monotonic(), {}
    about = harness.surroundings() | {"command": " ".join(sys.argv), "mfu is": MFU}
    about |= {name: _version(name) for name in ("torchao", "triton")}

    def started(recipe: str, rung: str, batch: int) -> dict:
        left = arguments.minutes * 60 - (time.monotonic() - begin)
        if left <= 0:
            return {"skipped": "no time left"}
        command = [sys.executable, __file__, "--one", recipe, rung, "--device", arguments.device]
        command += ["--batch", str(batch), "--length", str(arguments.length)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=left + 45)
        except subprocess.TimeoutExpired:
            return {"skipped": "no time left"}
        if done.returncode:
            return {"failed": _reason(done.stderr)}
        return json.loads(done.stdout.strip().splitlines()[-1])

    def keep(name: str, found: dict) -> None:
        results[name] = found
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(results | {"machine": about}, indent=2) + "\n")

    kernels = started("kernels", "", 1)
    keep("kernels", kernels)
    print("kernels", json.dumps(kernels), flush=True)
    print(f"MFU: {MFU}")
    later = [rung for rung in ladder() if rung not in FIRST]
    for rungs, (recipe, batch) in itertools.product((FIRST, later), batches.items()):
        print(f"{recipe}, {batch} x {arguments.length} tokens")
        for rung in rungs:
            if arguments.rungs and arguments.rungs not in rung:
                continue
            found = started(recipe, rung, batch)
            keep(f"{recipe}: {rung}", found)
            print(f"  {rung:<62} {_line(found)}", flush=True)


def _reason(stderr: str) -> str:
    """Return the line of the exception, which advice may follow."""
    lines = stderr.strip().splitlines() or ["no message"]
    raised = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Failed|Unsupported)\b", line)
    ]
    return (raised or lines)[-1]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _line(found: dict) -> str:
    if "tokens_per_second" not in found:
        return json.dumps(found)
    mfu = "MFU unknown" if found["mfu"] is None else f"MFU {found['mfu']:5.1%}"
    return (
        f"{found['tokens_per_second']:9,.0f} tokens/s  {mfu}  "
        f"{found['peak_memory_gib']:6.1f} GiB  (loss {found['loss']:.3f})"
    )


if __name__ == "__main__":
    main()
