"""Which part of a step takes how long."""

import time

import torch

# Waiting for batches and copying them; the model and its loss; gradients, with the sums over ranks
# that end them; clipping them, the update and experts' balance; and whatever is none of these.
PHASES = ("data", "forward", "backward", "optimizer", "other")
# A pipeline's rank waits for the others between its microbatches, and passes activations on.
PIPELINE = "pipeline"
_PAUSED = "paused"


class PhaseTimers:
    """Times the phases of every step, as columns of the metrics.

    They are `ms_data`, `ms_forward`, `ms_backward`, `ms_optimizer`, `ms_pipeline` if there are
    pipeline stages, and `ms_other`, and add up to `ms_per_step`. Communication that a phase waits
    for is in it; a `Trace` tells the two apart. On CUDA the device is timed, by events in its queue
    that are read when the metrics are written, so that no step waits. On a CPU the host is timed.
    """

    def clock(self, device: torch.device) -> "PhaseClock":
        """Start to time."""
        return PhaseClock(device)


class PhaseClock:
    """Every moment belongs to the phase that was entered last."""

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.enter("other")

    def enter(self, phase: str) -> None:
        """Begin a phase."""
        self._marks.append((phase, self._now()))

    def pause(self) -> None:
        """Leave out what follows, until `enter` is called again."""
        self.enter(_PAUSED)

    def read(self, steps: int) -> dict[str, float]:
        """Milliseconds of each phase per step, since this was called last; the device is idle."""
        self.enter(self._marks[-1][0])
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the mark that was just made
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
