"""Run all benchmarks, one after the other.

    ./tools/run bench [--json FOLDER]

They take less than ten minutes on two CPU cores. With a CUDA GPU, its ladder comes last and takes
up to nine more minutes. docs/benchmarks.md keeps the results.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

SCRIPTS = ("startup", "config", "step", "overhead", "memory", "loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write each benchmark's figures to this folder")
    arguments = parser.parse_args()
    import torch

    scripts = [*SCRIPTS, "gpu"] if torch.cuda.is_available() else SCRIPTS
    if arguments.json is not None:
        arguments.json.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    failed = []
    for script in scripts:
        command = [sys.executable, str(Path(__file__).with_name(f"{script}.py"))]
        if arguments.json is not None:
            command += ["--json", str(arguments.json / f"{script}.json")]
        if subprocess.run(command).returncode:
            failed.append(script)
        print(flush=True)
    if scripts == SCRIPTS:
        print("no CUDA GPU: tools/bench/gpu.py was left out")
    print(f"{time.monotonic() - begin:.0f} s in all")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
