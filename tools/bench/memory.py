"""Measure time and memory of recomputation, for a Llama of 6 M parameters on 8 x 256 tokens.

    ./tools/run python tools/bench/memory.py

It prints CPU milliseconds of a step, without the first steps, and the increase of the process's
peak memory since the first step. Memory is measured in separate runs, in which freed memory goes
back to the system at once; that takes time.
"""

import harness

MODES = ("none", "selective", "full")
WARM_UP, STEPS = 3, 3


def train(mode: str, *, warm_up: int = WARM_UP, measured: int = STEPS) -> harness.Figures:
    import time

    from nanigpt.config.check.build import build
    from nanigpt.config.compose.flag import compose
    from nanigpt.parallel.world import start_world
    from nanigpt.training.loop import steps
    from nanigpt.training.setup import new_session

    n_steps = warm_up + measured
    edits = ["tag:GlobalBatchSize=8", "tag:SequenceLength=256", f"tag:Steps={n_steps}"]
    edits += [f"tag:ActivationCheckpointing={mode}", f"set:schedule.warmup_steps={warm_up}"]
    cfg = compose(["config:llama3_debug", *edits])
    trainer = build(cfg)
    trainer.data.setup()
    session = new_session(trainer, start_world("cpu"))
    times, memory, losses = [], [], []
    before = harness.peak_gib()
    for row in steps(session):
        times.append(time.process_time())
        memory.append(harness.peak_gib())
        losses.append(float(row["loss"]))
    ms = 1000 * (times[-1] - times[warm_up - 1]) / measured
    return {"ms": ms, "GiB": memory[-1] - before, "loss": losses[-1]}


def without_keeping(mode: str) -> harness.Figures:
    """Train while glibc returns every larger piece of memory as soon as it is freed."""
    import ctypes

    threshold = -3  # M_MMAP_THRESHOLD
    ctypes.CDLL(None).mallopt(threshold, 65536)
    return train(mode, warm_up=1, measured=1)  # memory does not change after that


SPEED = {mode: lambda mode=mode: train(mode) for mode in MODES}
MEMORY = {f"{mode}, memory": lambda mode=mode: without_keeping(mode) for mode in MODES}


def report(repetitions: int) -> dict:
    found = harness.measure(__file__, SPEED, repetitions=repetitions)
    for name, of in harness.measure(__file__, MEMORY, repetitions=1).items():
        found[name.removesuffix(", memory")]["GiB"] = of["GiB"]
    harness.heading("Recomputation: Llama of 6 M parameters, 8 x 256 tokens", repetitions)
    base = found["none"]
    for mode, of in found.items():
        print(
            f"  {mode:<10} {of['ms']:8.1f} ms CPU  {of['ms'] / base['ms']:5.3f} x none  "
            f"{of['GiB']:6.3f} GiB  {of['GiB'] / base['GiB']:5.3f} x none  (loss {of['loss']:.6f})"
        )
    return {"recomputation": found}


if __name__ == "__main__":
    harness.main(__file__, SPEED | MEMORY, report)
