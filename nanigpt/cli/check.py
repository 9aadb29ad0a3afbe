"""Check a config: types, required arguments, sharing, and every component's own rules, on meta.

nanigpt check --config=config:llama3_405b --config=set:global_batch_size=100 --ranks=512
nanigpt check --run_dir=runs/llama3_debug --config=fiddler:compile
"""

from collections.abc import Iterator
from typing import Any

import torch
from absl import flags

from nanigpt.cli.run_flag import define_config_or_run
from nanigpt.config.check.assembly import Assembly
from nanigpt.config.check.static import record_findings
from nanigpt.config.compose.flag import config_flag
from nanigpt.config.record.fingerprint import fingerprint
from nanigpt.errors import UsageError
from nanigpt.models.protocol import parameter_counts
from nanigpt.problems import Problem
from nanigpt.training.trainer import Trainer


def define_flags(values: flags.FlagValues) -> None:
    define_config_or_run(values, default="config:llama3_debug")
    flags.DEFINE_integer(
        "ranks", None, "processes that it is to run on", lower_bound=1, flag_values=values
    )
    flags.DEFINE_bool(
        "files",
        True,
        "Look up whether this machine has the files that the run reads. No file is opened.",
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    with torch.device("meta"):
        assembly = Assembly(values.config, directives=config_flag(values).directives)
    assembly.findings += record_findings(values.config)
    assembly.check(
        lambda built: _cross_checks(built, values.ranks),
        lambda _: assembly.missing() if values.files else (),
    )
    built = assembly.root
    print(f"no problems; {_describe(built)}, fingerprint {fingerprint(values.config)}")
    return 0


def _cross_checks(built: Any, ranks: int | None) -> Iterator[Problem]:
    if isinstance(built, Trainer):
        device = None if built.device == "auto" else built.device
        yield from built.problems(ranks or built.parallelizer.mesh.least, device)
    elif ranks is not None:
        raise UsageError(f"--ranks: the config builds {type(built).__name__}, not a Trainer")


def _describe(built: Any) -> str:
    if not isinstance(built, Trainer):
        return f"builds {type(built).__name__}, which is no Trainer"
    length = built.sequence_length
    batch = "samples" if length is None else f"x {length} tokens"
    return (
        f"{parameter_counts(built.model)}, {built.steps:,} steps of {built.global_batch_size} "
        f"{batch}"
    )
