"""What it costs to learn of a typo, and to build the largest recipe, beside importing torch.

    ./tools/run python tools/bench/startup.py

Each variant runs in a process of its own, in turn (A B C A B C ...), with one thread. Printed are
the medians of CPU seconds and of peak memory, and what lies on top of `import torch`.
"""

import os
import statistics
import subprocess
import sys

REPETITIONS = 5

VARIANTS = {
    "import torch": "import torch",
    "unknown recipe": """
from nanigpt.cli.main import main
assert main(["train", "--config=config:lama3"]) == 2
""",
    "unknown path": """
from nanigpt.cli.main import main
assert main(["train", "--config=config:llama3_debug", "--config=set:optimizer.lrr=1"]) == 2
""",
    "llama3_405b on meta": """
from nanigpt.config.build import build
from nanigpt.config.flag import compose
assert build(compose(["config:llama3_405b"])).model.n_parameters() == 405_853_388_800
""",
}

MEASURE = """
import resource
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**20)
"""


def measure(code: str) -> tuple[float, float]:
    """CPU seconds and peak GiB of a Python process that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code + MEASURE],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, gib = done.stdout.splitlines()[-1].split()
    return float(seconds), float(gib)


def main() -> None:
    results = {name: [] for name in VARIANTS}
    for _ in range(REPETITIONS):
        for name, code in VARIANTS.items():
            results[name].append(measure(code))
    load = os.getloadavg()[0]
    print(f"median of {REPETITIONS}, load average {load:.2f}")
    base = statistics.median(seconds for seconds, _ in results["import torch"])
    for name, measured in results.items():
        seconds, gib = (statistics.median(values) for values in zip(*measured, strict=True))
        print(
            f"{name:<20} {seconds:5.2f} s CPU  {seconds / base:4.2f} x import torch  "
            f"(+{seconds - base:4.2f} s)  {gib:4.2f} GiB"
        )


if __name__ == "__main__":
    main()
