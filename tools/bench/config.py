"""Measure the tools for configs on the largest recipe, relative to importing torch.

    ./tools/run python tools/bench/config.py

It prints seconds and their ratios. `import torch` runs in its own process, all else in another one.
"""

import time

import harness


def import_torch() -> harness.Figures:
    start = time.perf_counter()
    import torch  # noqa: F401

    return {"import torch": time.perf_counter() - start}


def tools() -> harness.Figures:
    import tempfile
    from pathlib import Path

    from nanigpt.config.check.build import check
    from nanigpt.config.compose.flag import compose
    from nanigpt.config.record.file import dump, load
    from nanigpt.config.record.fingerprint import fingerprint
    from nanigpt.config.registry import find_recipe
    from nanigpt.config.view.diff import render as render_diff
    from nanigpt.config.view.show import render

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
    edits = ["set:model.layers[::2].attention.wq.initializer.scale=2", "set:steps=3"]
    other = compose(["config:llama3_405b", *edits])
    measure("diff", lambda: render_diff(cfg, other))
    measure("diff as Python", lambda: render_diff(cfg, other, format="python"))
    measure("show", lambda: render(cfg))
    measure("show --why", lambda: render(cfg, why=True))
    measure("show as Python", lambda: render(cfg, format="python"))
    measure("show as HTML, with sizes", lambda: render(cfg, format="html"))
    measure("fingerprint", lambda: fingerprint(cfg))
    return seconds


VARIANTS = {"import torch": import_torch, "tools": tools}


def report(repetitions: int) -> dict:
    found = harness.measure(__file__, VARIANTS, repetitions=repetitions)
    harness.heading("Config tools, llama3_405b", repetitions)
    base = found["import torch"]["import torch"]
    for name, seconds in (found["import torch"] | found["tools"]).items():
        print(f"  {name:<26} {seconds:6.3f} s  {seconds / base:6.3f} x import torch")
    return {"config": found}


if __name__ == "__main__":
    harness.main(__file__, VARIANTS, report)
