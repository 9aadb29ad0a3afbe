"""Run on several ranks by test_profiling.py: trains a small run.

Usage: torchrun --nproc-per-node=2 -m tests.training.profiled_run DIRECTORY EDIT ...
"""

import sys

from nanigpt.config.check.build import build
from nanigpt.parallel.world import start_world, stop_world
from nanigpt.training.run_directory import RunDirectory
from tests.support import tiny

if __name__ == "__main__":
    world = start_world("cpu")
    build(tiny(*sys.argv[2:])).run(RunDirectory(sys.argv[1]), world)
    stop_world()
