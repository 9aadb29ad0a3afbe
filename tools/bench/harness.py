"""Harness of benchmarks: a process with one thread for each variant, alternating (A B A B ...).

A benchmark is a script that starts itself again for each variant, with the variant's name, and then
prints one JSON object of figures at the end. One run measures all variants that are to be compared,
because figures of two runs differ on a shared machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

Figures = dict[str, float]


def measure(script: str, variants: Iterable[str], *, repetitions: int) -> dict[str, Figures]:
    """Return the medians of the figures that `script VARIANT` prints, for each variant."""
    variants = list(variants)
    measured: dict[str, list[Figures]] = {variant: [] for variant in variants}
    for round_ in range(repetitions):
        for variant in variants:
            done = subprocess.run(
                [sys.executable, script, variant],
                env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise SystemExit(f"{script} {variant} failed:\n{done.stdout}\n{done.stderr}")
            measured[variant].append(json.loads(done.stdout.splitlines()[-1]))
            if sys.stderr.isatty():
                print(f"\r{round_ + 1} / {repetitions} {variant:<40}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    return {
        variant: {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        for variant, rounds in measured.items()
    }


def figures(result: Figures) -> None:
    """Print the figures of a variant in the form that `measure` reads."""
    print(json.dumps(result), flush=True)


def main(script: str, variants: dict[str, Callable[[], Figures]], report: Callable) -> None:
    """Measure all variants and report, or run the variant that the command line names.

    Args:
        script: Path of the script.
        variants: Functions that run a variant and return its figures.
        report: Function that takes the number of repetitions, calls `measure`, prints the results,
            and returns the content for `--json`.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("variant", nargs="?", choices=list(variants))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="Write the figures to this file.")
    arguments = parser.parse_args()
    if arguments.variant is not None:
        figures(variants[arguments.variant]())
        return
    found = report(arguments.repetitions)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found | surroundings(), indent=2) + "\n")


def surroundings() -> dict[str, str | float]:
    """Return the versions and the load on which figures depend."""
    import torch

    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "load average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def heading(title: str, repetitions: int) -> None:
    print(f"{title}\nmedian of {repetitions}, load average {os.getloadavg()[0]:.2f}")


def peak_gib() -> float:
    """Return the peak memory of this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
