"""Print what a model costs: parameters, training FLOPs per token, bytes of the KV cache.

nanigpt count --config=config:llama3_8b --positions=4096
nanigpt count --config=config:llama3_8b --config=tag:SequenceLength=32768 --format=json

Without --config, a table of all recipes, each at its own sequence length.
"""

import dataclasses
import json
from typing import Any

from absl import flags

from nanigpt.cli.trainer import checked_trainer
from nanigpt.config.flag import compose, define_config_flag
from nanigpt.config.registry import family, recipes
from nanigpt.errors import UsageError
from nanigpt.training.trainer import Trainer

_LENGTHS = ("sequence_length", "positions")
_HEADINGS = (
    *("family", "recipe", "parameters", "active", "embedding"),
    *("GFLOPs per token", "at sequence length", "cache bytes per position"),
)


def define_flags(values: flags.FlagValues) -> None:
    define_config_flag(values)
    flags.DEFINE_integer(
        "sequence_length",
        None,
        "tokens of a training sequence, for FLOPs (default: the run's)",
        1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "positions",
        None,
        "of the KV cache (default: all that the model has)",
        1,
        flag_values=values,
    )
    flags.DEFINE_enum("format", "text", ["text", "json"], "how to print it", flag_values=values)


def run(values: flags.FlagValues) -> int:
    lengths = {name: values[name].value for name in _LENGTHS if values[name].value is not None}
    if values["config"].directives:
        trainer = checked_trainer(values.config, directives=values["config"].directives)
        found, as_text = costs(trainer, **lengths), _text
    elif lengths:
        name, value = next(iter(lengths.items()))
        raise UsageError(f"--{name}={value} goes with --config\n  try: nanigpt count --help")
    else:
        found, as_text = costs_of_recipes(), table
    print(json.dumps(found, indent=2) if values.format == "json" else as_text(found))
    return 0


def costs(
    trainer: Trainer, *, sequence_length: int | None = None, positions: int | None = None
) -> dict[str, Any]:
    """What a run's model costs, from its definition alone.

    Args:
        sequence_length: tokens of a training sequence, by default the run's.
        positions: of the KV cache of one text, by default all that the model has.

    Raises:
        UsageError: the model has not so many positions.
    """
    model = trainer.model
    for name, value in zip(_LENGTHS, (sequence_length, positions), strict=True):
        longest = model.max_sequence_length
        if value is not None and longest is not None and value > longest:
            raise UsageError(
                f"--{name}={value}: the model has {longest} positions; expected "
                f"at most as many, or --config=tag:SequenceLength={value} too"
            )
    sequence_length = sequence_length or trainer.data.sequence_length
    positions = positions or model.max_sequence_length or sequence_length
    return {
        "parameters": dataclasses.asdict(model.parameter_counts()),
        "sequence_length": sequence_length,
        "flops_per_token": model.flops_per_token(sequence_length),
        "cache_dtype": str(model.embedding.compute_dtype).removeprefix("torch."),
        "cache_bytes_per_position": model.cache_bytes(positions=1),
        "positions": positions,
        "cache_bytes": model.cache_bytes(positions=positions),
    }


def costs_of_recipes() -> list[dict[str, Any]]:
    """`costs` of each recipe, by family and size; those for debugging are last.

    Raises:
        UsageError: a recipe does not build.
    """
    rows = []
    for name, function in recipes().items():
        cfg = compose([f"config:{name}"])
        try:
            found = costs(checked_trainer(cfg))
        except UsageError as error:
            raise error.within(f"recipe {name}") from error
        rows.append({"family": family(function), "recipe": name, **found})

    def place(row: dict[str, Any]) -> tuple:
        debug = row["recipe"].endswith("_debug")
        return debug, row["family"], row["parameters"]["total"], row["recipe"]

    return sorted(rows, key=place)


def table(rows: list[dict[str, Any]]) -> str:
    """`costs_of_recipes` in Markdown, which README.md has too."""
    cells = [
        (
            row["family"],
            f"`{row['recipe']}`",
            *(f"{row['parameters'][key]:,}" for key in ("total", "active", "embedding")),
            f"{row['flops_per_token'] / 1e9:,.2f}",
            f"{row['sequence_length']:,}",
            f"{row['cache_bytes_per_position']:,}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    aligned = [str.ljust] * 2 + [str.rjust] * 6
    rule = ["-" * width if i < 2 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        [align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True)]
        for line in (_HEADINGS, rule, *cells)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(found: dict[str, Any]) -> str:
    counts = found["parameters"]
    tied = "the head's too" if counts["tied"] else ""
    length, positions = found["sequence_length"], found["positions"]
    gib = found["cache_bytes"] / 2**30
    lines = [
        ("parameters", counts["total"], ""),
        ("  active", counts["active"], ""),
        ("  embedding", counts["embedding"], tied),
        ("training FLOPs per token", found["flops_per_token"], f"in sequences of {length:,}"),
        (
            "KV cache per position",
            found["cache_bytes_per_position"],
            f"bytes in {found['cache_dtype']}",
        ),
        (f"KV cache of {positions:,} positions", found["cache_bytes"], f"bytes, {gib:.3g} GiB"),
    ]
    left = max(len(name) for name, _, _ in lines)
    right = max(len(f"{number:,}") for _, number, _ in lines)
    return "\n".join(f"{a:<{left}}  {n:>{right},}  {b}".rstrip() for a, n, b in lines)
