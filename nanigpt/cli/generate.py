"""Sample text from a run's newest checkpoint.

nanigpt generate --run=runs/llama3_debug --prompt="def " --max_new_tokens=200
"""

from absl import flags

from nanigpt.cli.restored import restore
from nanigpt.cli.run_flag import define_run_flag
from nanigpt.training.sample import Sampler


def define_flags(values: flags.FlagValues) -> None:
    define_run_flag(values)
    flags.DEFINE_string("prompt", "", "text to continue", flag_values=values)
    flags.DEFINE_integer("max_new_tokens", 200, "tokens to sample at most", flag_values=values)
    flags.DEFINE_float("temperature", 0.8, "0 is greedy decoding", flag_values=values)
    flags.DEFINE_integer(
        "top_k", None, "sample among the k likeliest tokens only", flag_values=values
    )
    flags.DEFINE_integer("seed", 0, "of the random stream", flag_values=values)


def run(values: flags.FlagValues) -> int:
    trainer, world, _ = restore(values)
    sampler = Sampler(
        prompt=values.prompt,
        max_new_tokens=values.max_new_tokens,
        temperature=values.temperature,
        top_k=values.top_k,
        seed=values.seed,
    )
    text = sampler.run(trainer.model, trainer.data.tokenizer)
    if world.is_main:
        print(text)
    return 0
