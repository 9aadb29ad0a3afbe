"""Sample text from a run's newest checkpoint.

nanigpt generate --run_dir=runs/llama3_debug --prompt="def " --max_new_tokens=200
"""

from typing import Any

import torch
from absl import flags

from nanigpt import tags
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.cli.trainer import restore
from nanigpt.errors import UsageError
from nanigpt.tasks.sampler import Sampler


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values)
    flags.DEFINE_string("prompt", "", "text to continue", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 200, "tokens to sample at most", flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy decoding", flag_values=values)
    flags.DEFINE_integer(
        "top_k", None, "sample among the k likeliest tokens only", flag_values=values
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "of the random stream",
        lower_bound=0,
        upper_bound=2**63 - 1,
        flag_values=values,
    )


def run(values: flags.FlagValues) -> int:
    try:
        sampler = Sampler(
            prompt=values.prompt,
            max_new_tokens=values.max_new_tokens,
            temperature=values.temperature,
            top_k=values.top_k,
            seed=values.seed,
        )
    except ValueError as error:
        raise UsageError(f"generate: {error}") from error
    # Weights are float32 anyhow, and only in float32 is greedy decoding with the cache, which
    # multiplies other shapes, sure to choose what decoding without it does. Scales of float8 would
    # be those of other shapes, too, and not every device has it.
    exact = {tags.ComputeDType: torch.float32, tags.Float8: None}
    assembly, parallel, _ = restore(values, changes=exact)
    if not hasattr(assembly.root.data, "tokenizer"):
        kind = type(assembly.root.data).__name__
        raise UsageError(
            f"--run_dir: {values.run_dir} is trained on {kind}, which has no tokenizer"
        )
    with assembly.located():
        decoder: Any = parallel.model
        text = sampler.run(decoder, assembly.root.data.tokenizer)
    if parallel.layout.world.is_main:
        print(text)
    return 0
