"""Print a config as a tree, a list, Python, JSON, a graph, or a page.

nanigpt show --config=config:llama3_8b --config=tag:LearningRate=1e-4 --why
nanigpt show --run_dir=runs/llama3_debug --format=python > rebuilt.py
nanigpt show --config=config:llama3_8b --format=html > llama3_8b.html
nanigpt show --config=config:llama3_8b --config="fiddler:pipeline(4, '1F1B', 8)" --schedule
"""

import shutil
import sys
from typing import Any

from absl import flags

from nanigpt.cli.run_flag import define_config_or_run
from nanigpt.config.compose.flag import config_flag
from nanigpt.config.view.show import FORMATS, render
from nanigpt.errors import UsageError


def define_flags(values: flags.FlagValues) -> None:
    define_config_or_run(values, default="config:llama3_debug")
    flags.DEFINE_enum("format", "tree", FORMATS, "Print this format.", flag_values=values)
    flags.DEFINE_bool(
        "why",
        False,
        "Show the place that set each value, and its value before.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "schedule",
        False,
        "Print the pipeline's schedule instead, as text, or as a page with --format=html.",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    color = sys.stdout.isatty()
    if values.schedule:
        print(_schedule(values.config, format=values.format, color=color))
        return 0
    title = " ".join(config_flag(values).directives)
    print(render(values.config, format=values.format, color=color, why=values.why, title=title))
    return 0


def _schedule(cfg: Any, *, format: str, color: bool) -> str:
    from nanigpt.cli.schedule_page import to_html
    from nanigpt.cli.trainer import checked_trainer
    from nanigpt.parallel.schedule_picture import to_text

    trainer = checked_trainer(cfg)
    mesh = trainer.parallelizer.mesh
    ranks = mesh.axes["pp"]
    if ranks < 2:
        raise UsageError(
            f"--schedule: the mesh has pp={ranks}, no pipeline; expected 2 or more, as with "
            '''--config="fiddler:pipeline(4, '1F1B', microbatches=8)"'''
        )
    if format not in ("tree", "html"):
        raise UsageError(f"--schedule --format={format}: expected tree (text) or html")
    decoder: Any = trainer.model
    timeline = trainer.parallelizer.pipeline.timeline(
        decoder, ranks, trainer.local_batch(mesh.least)
    )
    if format == "html":
        return to_html(timeline)
    return to_text(timeline, width=shutil.get_terminal_size((100, 0)).columns, color=color)
