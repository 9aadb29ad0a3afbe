"""Print one rank's part of each parameter, for any number of ranks and without starting them.

nanigpt shards --config=config:llama3_70b_on_256 --ranks=256
nanigpt shards --config=config:llama3_405b_on_512 --ranks=512 --rank=511
"""

import math
import re
from typing import Any

from absl import flags

from nanigpt.cli.table import add_row, new_table, print_table
from nanigpt.cli.trainer import build_trainer
from nanigpt.config.compose.flag import config_flag, define_config_flag
from nanigpt.errors import UsageError
from nanigpt.models.protocol import parameter_counts


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values, default_directive="config:llama3_debug")
    flags.DEFINE_integer(
        "ranks",
        None,
        "Divide the model among this number of ranks (default: the mesh's smallest).",
        1,
        flag_values=values,
    )
    flags.DEFINE_integer("rank", 0, "Show this rank.", 0, flag_values=values)
    flags.DEFINE_bool("all", False, "Show every layer separately.", flag_values=values)


def run(values: flags.FlagValues) -> int:
    from nanigpt.parallel.simulate import shards

    trainer = build_trainer(values.config, directives=config_flag(values).directives)
    ranks = values.ranks or trainer.parallelizer.mesh.least
    if values.rank >= ranks:
        raise UsageError(f"--rank={values.rank}: expected 0 to {ranks - 1}, there are {ranks}")
    trainer.check(ranks)
    whole = parameter_counts(trainer.model).total
    decoder: Any = trainer.model
    found = shards(
        trainer.parallelizer,
        decoder,
        ranks=ranks,
        rank=values.rank,
        local_batch=trainer.local_batch(ranks),
    )
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for shard in found:
        name = shard.name if values.all else re.sub(r"\.\d+\.", ".*.", shard.name)
        row = (name, _shape(shard.shape), _shape(shard.local), shard.split)
        rows.setdefault(row, []).append(shard.name)
    table = new_table(["parameter", "shape", f"on rank {values.rank}", "split", ""])
    for row, names in rows.items():
        add_row(table, [*row, f"x{len(names)}" if names[1:] else ""])
    print_table(table)
    held = sum(math.prod(shard.local) for shard in found)
    print(f"{held:,} of {whole:,} parameters, {held / whole:.3%}")
    return 0


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
