"""Record the first losses and gradient norms of every recipe, and compare them bit for bit.

tools/run python tools/bit_equal.py --compare tests/fixtures/bit_equal.json
tools/run python tools/bit_equal.py --write tests/fixtures/bit_equal.json

A refactoring leaves these numbers as they are. Each recipe trains 5 steps on one process and one
thread of the CPU: debug recipes as they are, all others under `fiddler:debug_scale`. The script
interrupts training after the fifth step, so that none of the steps is the last of its schedule.

The file is older than the rule that `debug_scale` scales initial weights for the layers it keeps.
So the script sets the scale of all layers of the recipe, and every other number is compared.

Exit status: 0 if all numbers are equal, 1 if one differs, 2 if they cannot be compared, because
this machine rounds in another way than the one that wrote the file. In that case, write a file from
the commit before the change (`git worktree add DIR COMMIT`) and compare with that one.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # the checkout that this file is in, whatever is installed

import torch  # noqa: E402

from nanigpt.cli.main import main as nanigpt  # noqa: E402
from nanigpt.config.registry import recipes  # noqa: E402
from nanigpt.data.batch import Batch  # noqa: E402
from nanigpt.experiments import nodes  # noqa: E402
from nanigpt.training import loop  # noqa: E402
from nanigpt.training.setup import Session  # noqa: E402
from nanigpt.training.trackers.tracker import Row  # noqa: E402
from tools.arithmetic import arithmetic  # noqa: E402

STEPS = 5
NUMBERS = ("loss", "grad_norm")
CORPUS = ROOT / "tests" / "fixtures" / "text.txt"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", type=Path, metavar="FILE")
    task.add_argument("--compare", type=Path, metavar="FILE")
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="these recipes, not all")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stored = json.loads(asked.compare.read_text()) if asked.compare else None
    known = list(recipes())
    if unknown := set(asked.only or ()) - set(known):
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found = {name: steps(name) for name in asked.only or known}
    here = arithmetic()
    if stored is None:
        asked.write.write_text(dump({"arithmetic": here, "recipes": found}))
        print(f"{len(found)} recipes written to {asked.write}")
        return 0
    return compare(stored, found, here, all_recipes=not asked.only)


def steps(name: str) -> list[dict[str, str]]:
    """Train the first steps of a recipe; return their numbers as hexadecimal floats."""
    directives = [f"config:{name}"]
    if not name.endswith("_debug"):
        directives += ["fiddler:debug_scale", f"tag:ResidualScale={residual_scale(name)!r}"]
    directives += ["set:device='cpu'", f"set:data.corpus.path={str(CORPUS)!r}"]
    began = time.monotonic()
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, stopping_after(STEPS):
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = nanigpt(
                ["train", f"--run_dir={folder}", *(f"--config={d}" for d in directives)]
            )
        if status != 130:
            raise SystemExit(f"{name}: exit status {status}\n{printed.getvalue()}")
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        raise SystemExit(f"{name}: expected rows of steps 1 to {STEPS}, not {rows}")
    print(f"{name}: loss {rows[-1]['loss']:.4f}, {time.monotonic() - began:.1f} s", flush=True)
    return [{key: float(row[key]).hex() for key in NUMBERS} for row in rows]


def residual_scale(name: str) -> float:
    """Return the scale of a recipe's initial weights that write to the residual stream."""
    return nodes.residual_scale(len(recipes()[name]().model.layers))


@contextlib.contextmanager
def stopping_after(n: int) -> Iterator[None]:
    """Interrupt training before it takes step n, counted from 0.

    The effect is that of Ctrl-C, so that all rows so far are complete. The schedule does not
    change.
    """
    step = loop.train_step

    def interrupted(session: Session, microbatches: Iterable[Batch]) -> Row:
        if session.progress.step >= n:
            raise KeyboardInterrupt
        return step(session, microbatches)

    with mock.patch.object(loop, "train_step", interrupted):
        yield


def compare(stored: dict, found: dict, here: dict[str, str], *, all_recipes: bool) -> int:
    """Print what differs; return the exit status."""
    expected = stored["recipes"]
    wrong, largest, compared = [], 0.0, 0
    for name in [n for n in expected if n in found]:
        pairs = zip(expected[name], found[name], strict=True)
        for step, (before, after) in enumerate(pairs, start=1):
            for key in NUMBERS:
                old, new = float.fromhex(before[key]), float.fromhex(after[key])
                compared += 1
                if old != new:
                    difference = abs(new - old) / abs(old)
                    largest = max(largest, difference)
                    wrong.append(f"{name}: step {step}: {key} {old!r} -> {new!r}")
    gone = [n for n in expected if n not in found] if all_recipes else []
    wrong += [f"{name}: no such recipe any more" for name in gone]
    new = [name for name in found if name not in expected]
    if new:
        print(f"not in the file, so not compared: {', '.join(new)}")
    if stored["arithmetic"] != here:
        print(
            f"the file is of other arithmetic: {stored['arithmetic']}; here: {here}\n"
            f"{compared} numbers, the largest relative difference is {largest:.2g}. Whether the "
            "code or the machine made it cannot be told; compare with a file that this machine "
            "wrote (see --help)"
        )
        return 2
    print("\n".join(wrong) or f"{compared} numbers of {len(found)} recipes, all equal bit for bit")
    return 1 if wrong else 0


def dump(content: dict) -> str:
    """Return JSON with a line for each step."""
    recipes = ",\n".join(
        f'  "{name}": [\n' + ",\n".join(f"   {json.dumps(row)}" for row in rows) + "\n  ]"
        for name, rows in content["recipes"].items()
    )
    head = json.dumps(content["arithmetic"])
    return f'{{\n "arithmetic": {head},\n "recipes": {{\n{recipes}\n }}\n}}\n'


if __name__ == "__main__":
    sys.exit(main())
