"""Measure the time to report a typo and to build the largest recipe, relative to importing torch.

    ./tools/run python tools/bench/startup.py

It prints CPU seconds, peak memory, and the difference from `import torch`.
"""

import time

import harness


def import_torch() -> None:
    import torch  # noqa: F401


def unknown_recipe() -> None:
    from nanigpt.cli.main import main

    assert main(["train", "--config=config:lama3"]) == 2


def unknown_path() -> None:
    from nanigpt.cli.main import main

    assert main(["train", "--config=config:llama3_debug", "--config=set:optimizer.lrr=1"]) == 2


def checked() -> None:
    from nanigpt.cli.main import main

    assert main(["check", "--config=config:llama3_debug"]) == 0


def largest() -> None:
    from nanigpt.config.check.build import build
    from nanigpt.config.compose.flag import compose

    assert build(compose(["config:llama3_405b"])).model.n_parameters() == 405_853_388_800


def measured(function) -> harness.Figures:
    function()
    return {"s": time.process_time(), "GiB": harness.peak_gib()}


VARIANTS = {
    "import torch": lambda: measured(import_torch),
    "unknown recipe": lambda: measured(unknown_recipe),
    "unknown path": lambda: measured(unknown_path),
    "config and checks": lambda: measured(checked),
    "llama3_405b on meta": lambda: measured(largest),
}


def report(repetitions: int) -> dict:
    found = harness.measure(__file__, VARIANTS, repetitions=repetitions)
    harness.heading("Start-up", repetitions)
    base = found["import torch"]["s"]
    for name, of in found.items():
        print(
            f"  {name:<20} {of['s']:5.2f} s CPU  {of['s'] / base:5.2f} x import torch  "
            f"({of['s'] - base:+5.2f} s)  {of['GiB']:4.2f} GiB"
        )
    return {"startup": found}


if __name__ == "__main__":
    harness.main(__file__, VARIANTS, report)
