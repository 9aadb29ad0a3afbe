"""Print what a model costs: parameters, training FLOPs, bytes of the KV cache.

nanigpt count --config=config:llama3_8b --positions=4096
nanigpt count --config=config:llama3_8b --config=tag:SequenceLength=32768 --format=json
nanigpt count --run_dir=runs/llama3_debug

Without --config and --run_dir, a table of all recipes, each at its own sequence length.
"""

import dataclasses
import json
from typing import Any

from absl import flags

from nanigpt.cli.run_flag import define_config_or_run
from nanigpt.cli.trainer import checked_trainer
from nanigpt.config.compose.flag import compose, config_flag
from nanigpt.config.registry import family, recipes
from nanigpt.errors import UsageError
from nanigpt.models.protocol import compute_dtype, max_sequence_length, parameter_counts
from nanigpt.training.setup import step_work
from nanigpt.training.trainer import Trainer

_LENGTHS = ("sequence_length", "positions")
_HEADINGS = (
    *("family", "recipe", "parameters", "active", "embedding"),
    *("GFLOPs per token", "at sequence length", "cache bytes per position"),
)

_COLUMNS = (
    ("flops_per_token", 1e9, ".2f"),
    ("sequence_length", 1, ".0f"),
    ("cache_bytes_per_position", 1, ".0f"),
)


def define_flags(values: flags.FlagValues) -> None:
    define_config_or_run(values)
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
    if config_flag(values).directives:
        trainer = checked_trainer(values.config, directives=config_flag(values).directives)
        found: Any = costs(trainer, **lengths)
        as_text: Any = _text
    elif lengths:
        name, value = next(iter(lengths.items()))
        raise UsageError(
            f"--{name}={value} goes with --config or --run_dir\n  try: nanigpt count --help"
        )
    else:
        found, as_text = costs_of_recipes(), table
    print(json.dumps(found, indent=2) if values.format == "json" else as_text(found))
    return 0


def costs(
    trainer: Trainer, *, sequence_length: int | None = None, positions: int | None = None
) -> dict[str, Any]:
    """Return what a run's model costs, from its definition alone.

    A model that does not say its FLOPs per token is run on meta with a sample of the run's data,
    which are set up for it.

    Args:
        sequence_length: Tokens of a training sequence; None takes the run's.
        positions: Positions of the KV cache of one text; None takes all that the model has.

    Raises:
        UsageError: The model has fewer positions, or a length is given for other samples.
    """
    model: Any = trainer.model
    given = dict(zip(_LENGTHS, (sequence_length, positions), strict=True))
    counts = {"parameters": dataclasses.asdict(parameter_counts(model))}
    length = sequence_length or trainer.sequence_length
    if length is None or not hasattr(model, "flops_per_token"):
        return counts | _measured(trainer, given)
    longest = max_sequence_length(model)
    for name, value in given.items():
        if value is not None and longest is not None and value > longest:
            raise UsageError(
                f"--{name}={value}: the model has {longest} positions; expected "
                f"at most as many, or --config=tag:SequenceLength={value} too"
            )
    found = counts | {"sequence_length": length, "flops_per_token": model.flops_per_token(length)}
    if not hasattr(model, "cache_bytes"):
        return found
    positions = positions or longest or length
    return found | {
        "cache_dtype": str(compute_dtype(model)).removeprefix("torch."),
        "cache_bytes_per_position": model.cache_bytes(positions=1),
        "positions": positions,
        "cache_bytes": model.cache_bytes(positions=positions),
    }


def _measured(trainer: Trainer, given: dict[str, int | None]) -> dict[str, Any]:
    """Return the FLOPs of a token or sample, None where the model does not run on meta."""
    for name, value in given.items():
        if value is not None:
            kind = type(trainer.model).__name__
            raise UsageError(f"--{name}={value}: {kind} says no FLOPs per token (flops_per_token)")
    trainer.data.setup()
    work = step_work(trainer)
    return {f"flops_per_{work.unit.removesuffix('s')}": work.flops}


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
            *(
                "-" if row.get(key) is None else f"{row[key] / unit:,{form}}"
                for key, unit, form in _COLUMNS
            ),
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
    lines = [("parameters", counts["total"], ""), ("  active", counts["active"], "")]
    if counts["embedding"]:
        tied = "the head's too" if counts["tied"] else ""
        lines.append(("  embedding", counts["embedding"], tied))
    if counts["trainable"] != counts["total"]:
        lines.append(("  trainable", counts["trainable"], ""))
    for unit in ("token", "sample"):
        if found.get(f"flops_per_{unit}") is not None:
            length = found.get("sequence_length")
            note = "" if length is None else f"in sequences of {length:,}"
            lines.append((f"training FLOPs per {unit}", found[f"flops_per_{unit}"], note))
    if "positions" in found:
        each, positions = found["cache_bytes_per_position"], found["positions"]
        gib = found["cache_bytes"] / 2**30
        lines += [
            ("KV cache per position", each, f"bytes in {found['cache_dtype']}"),
            (f"KV cache of {positions:,} positions", found["cache_bytes"], f"bytes, {gib:.3g} GiB"),
        ]
    left = max(len(name) for name, _, _ in lines)
    right = max(len(f"{number:,}") for _, number, _ in lines)
    return "\n".join(f"{a:<{left}}  {n:>{right},}  {b}".rstrip() for a, n, b in lines)
