"""What the tools for configs cost on the largest recipe, beside importing torch.

    ./tools/run python tools/bench/config.py

Every round measures each of them once, in a process of its own for `import torch` and in one for
the rest, with one thread; printed are medians of seconds and their ratios.
"""

import json
import os
import statistics
import subprocess
import sys

REPETITIONS = 5

IMPORT = """
import json, time
start = time.perf_counter()
import torch
print(json.dumps({"import torch": time.perf_counter() - start}))
"""

MEASURE = """
import json, tempfile, time
from pathlib import Path

from nanigpt.config.build import check
from nanigpt.config.diff import render as render_diff
from nanigpt.config.fingerprint import fingerprint
from nanigpt.config.flag import compose
from nanigpt.config.record import dump, load
from nanigpt.config.registry import find_recipe
from nanigpt.config.show import render

seconds = {}

def measure(name, function):
    start = time.perf_counter()
    result = function()
    seconds[name] = time.perf_counter() - start
    return result

recipe = find_recipe("llama3_405b")
cfg = measure("construct", recipe)
measure("check, with build on meta", lambda: check(cfg))
text = measure("dump", lambda: dump(cfg))
path = Path(tempfile.mkdtemp()) / "config.json"
path.write_text(text)
loaded = measure("load", lambda: load(path))
assert fingerprint(loaded) == fingerprint(cfg)
other = compose(
    ["config:llama3_405b", "set:model.layers[::2].attention.wq.initializer.scale=2", "set:steps=3"]
)
measure("diff", lambda: render_diff(cfg, other))
measure("diff as Python", lambda: render_diff(cfg, other, format="python"))
measure("show", lambda: render(cfg))
measure("show --why", lambda: render(cfg, why=True))
measure("show as Python", lambda: render(cfg, format="python"))
measure("show as HTML, with sizes", lambda: render(cfg, format="html"))
measure("fingerprint", lambda: fingerprint(cfg))
print(json.dumps(seconds))
"""


def run(code: str) -> dict[str, float]:
    """What a Python process that runs `code` printed last."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    rounds = [run(IMPORT) | run(MEASURE) for _ in range(REPETITIONS)]
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"llama3_405b, median of {REPETITIONS}, load average {os.getloadavg()[0]:.2f}")
    for name, seconds in medians.items():
        print(
            f"{name:<26} {seconds:6.3f} s  {seconds / medians['import torch']:6.3f} x import torch"
        )


if __name__ == "__main__":
    main()
