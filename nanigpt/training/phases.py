"""Time the parts of a step."""

import time

import torch

# `data` waits for batches and copies them. `forward` computes the model and its loss. `backward`
# computes gradients and ends with their sums over ranks. `optimizer` clips gradients, updates
# parameters and balances experts. `other` is all remaining time.
PHASES = ("data", "forward", "backward", "optimizer", "other")
# A pipeline's rank waits for the others between its microbatches, and passes activations on.
PIPELINE = "pipeline"
_PAUSED = "paused"


class PhaseTimers:
    """Timers of every step's phases, which become columns of the metrics.

    The columns are `ms_data`, `ms_forward`, `ms_backward`, `ms_optimizer`, `ms_pipeline` if there
    are pipeline stages, and `ms_other`. They add up to `ms_per_step`. A phase includes the
    communication that it waits for; a `Trace` separates the two. On CUDA the timers measure the
    device, by events in its queue that are read when the metrics are written, so that no step
    waits. On a CPU they measure the host.
    """

    def clock(self, device: torch.device) -> "PhaseClock":
        """Start to time."""
        return PhaseClock(device)


class PhaseClock:
    """Clock that assigns every moment to the phase that was entered last."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.enter("other")

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._marks.append((phase, self._now()))

    def pause(self) -> None:
        """Leave out the time that follows, until the next call of `enter`."""
        self.enter(_PAUSED)

    def read(self, steps: int) -> dict[str, float]:
        """Return milliseconds of each phase per step since the last call; wait for the device."""
        self.enter(self._marks[-1][0])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # waits for the mark above
        total = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            total[phase] = total.get(phase, 0.0) + _milliseconds(start, end)
        self._marks = self._marks[-1:]
        total.pop(_PAUSED, None)
        return {f"ms_{phase}": spent / steps for phase, spent in total.items()}

    def _now(self) -> "float | torch.cuda.Event":
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _milliseconds(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end)
    assert isinstance(start, float) and isinstance(end, float)
    return 1000 * (end - start)
