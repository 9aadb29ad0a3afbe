"""Fiddlers that measure a run's speed and memory."""

import fiddle as fdl

from nanigpt.config.registry import fiddler
from nanigpt.training.phases import PhaseTimers
from nanigpt.training.profiling import MemorySnapshot, Trace
from nanigpt.training.trainer import Trainer


@fiddler
def phase_timers(cfg: fdl.Config[Trainer]) -> None:
    """Measure the time of data, forward, backward and optimizer in every step."""
    cfg.profiling.phases = fdl.Config(PhaseTimers)


@fiddler
def profile(cfg: fdl.Config[Trainer], start: int = 10, steps: int = 3) -> None:
    """Trace some steps, and report their time by phase and mesh axis."""
    cfg.profiling.trace = fdl.Config(Trace, start=start, steps=steps)


@fiddler
def memory_snapshot(cfg: fdl.Config[Trainer], start: int = 1, steps: int = 3) -> None:
    """Record the CUDA memory of some steps."""
    cfg.profiling.memory = fdl.Config(MemorySnapshot, start=start, steps=steps)
