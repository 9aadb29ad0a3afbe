"""A TOML of torchtitan, version 0.2 or before, as a recipe.

Keys that the file leaves out have torchtitan's defaults.
"""

import math
import re
from pathlib import Path

from nanigpt.cli.importing.draft import Draft, Source
from nanigpt.cli.importing.keys import Keys
from nanigpt.cli.importing.llama_sizes import TORCHTITAN
from nanigpt.cli.importing.torchtitan_parallel import (
    compile,
    degrees,
    float8,
    mesh,
    recomputation,
)
from nanigpt.errors import UsageError
from nanigpt.words import one_of

# Values that ask for nothing, or for what nanigpt does anyway.
_NEUTRAL = {
    "optimizer.early_step_in_backward": False,
    "training.mixed_precision_reduce": "float32",
    "training.dtype": "float32",
    "training.deterministic": False,
    "training.gc_debug": False,
    "parallelism.enable_compiled_autograd": False,
    "parallelism.expert_parallel_degree": 1,
    "parallelism.expert_tensor_parallel_degree": 1,
    "parallelism.pipeline_parallel_schedule_csv": "",
    "checkpoint.async_mode": "disabled",
    "checkpoint.load_step": -1,
    "checkpoint.create_seed_checkpoint": False,
    "checkpoint.enable_first_step_checkpoint": False,
    "checkpoint.export_dtype": "float32",
    "checkpoint.last_save_in_hf": False,
    "checkpoint.last_save_model_only": False,
    "checkpoint.initial_load_in_hf": False,
    "job.print_args": False,
    "job.use_for_integration_test": False,
    "job.description": "default job",
    "metrics.disable_color_printing": False,
    "metrics.save_for_all_ranks": False,
    "model.print_after_conversion": False,
    "profiling.enable_memory_snapshot": False,
}
_FOLDER = "a run's files are in the folder of --run_dir"


def translate(keys: Keys, draft: Draft, ranks: int | None) -> None:
    """Move what nanigpt has from keys to a draft.

    Args:
        keys: The values of the file.
        draft: The recipe.
        ranks: Number of ranks of the run, or None if it is not known.

    Raises:
        UsageError: The model is no Llama, or a value has another type.
    """
    keys.neutral(_NEUTRAL)
    _model(keys, draft)
    _training(keys, draft, ranks)
    _optimizer(keys, draft)
    _schedule(keys, draft)
    mesh(keys, draft)
    recomputation(keys, draft)
    compiled = compile(keys, draft)
    if keys.take("parallelism.enable_async_tensor_parallel", False):
        if compiled:
            draft.set("parallelizer.tensor.asynchronous", True)
        else:
            draft.notes.append(
                "asynchronous tensor parallelism is off, as the model is not compiled"
            )
    float8(keys, draft)
    _around(keys, draft)
    keys.rest()


def _model(keys: Keys, draft: Draft) -> None:
    name = keys.take("model.name", "llama3")
    if name != "llama3":
        raise UsageError(f"model.name={name!r}: expected 'llama3'")
    flavor = keys.take("model.flavor", "debugmodel")
    size, core = re.fullmatch(r"(.*?)(?:_(flex|varlen)(?:_attn)?)?", flavor, re.DOTALL).groups()  # type: ignore[union-attr]
    if size not in TORCHTITAN:
        raise UsageError(f"model.flavor={flavor!r}: expected {one_of(map(repr, TORCHTITAN))}")
    draft.model = {**TORCHTITAN[size], "sequence_length": keys.take("training.seq_len", 2048)}
    if keys.choose("training.mixed_precision_param", "bfloat16", "float32") == "float32":
        draft.model["compute_dtype"] = Source("torch.float32")
    if core is not None:
        kind = {"flex": "FlexAttention", "varlen": "VarLen"}[core]
        draft.set("data.mask_documents", True)
        draft.each_layer("attention.core", draft.config(kind))


def _training(keys: Keys, draft: Draft, ranks: int | None) -> None:
    local = keys.take(keys.first("training.local_batch_size", "training.batch_size"), 8)
    draft.run = {
        "lr": keys.take("optimizer.lr", 8e-4),
        "global_batch_size": _global_batch(keys, draft, local, ranks),
        "local_batch_size": local,
        "steps": keys.take("training.steps", 10_000),
        "sequence_length": draft.model["sequence_length"],
    }
    draft.set("max_grad_norm", float(keys.take("training.max_norm", 1.0)))
    seed = keys.find(keys.first("training.seed", "debug.seed"), int)
    if seed is not None:
        draft.set("seed", seed)
    if keys.take("training.enable_cpu_offload", False):
        draft.set("parallelizer.fsdp.cpu_offload", True)
    interval = keys.find("training.gc_freq", int)
    if interval is not None:
        draft.set("garbage_collection.interval", interval)
    reason = "the recipe reads its own corpus; give files by set:data.corpus.path=..."
    keys.leave("training.dataset", reason)
    keys.leave("training.dataset_path", reason)
    _tokenizer(keys, draft)


def _global_batch(keys: Keys, draft: Draft, local: int, ranks: int | None) -> int:
    """Return the global batch size, which torchtitan may take from the number of ranks."""
    given = keys.take("training.global_batch_size", -1)
    if given > 0:
        return given
    sizes = degrees(keys)
    shards = sizes["dp_shard"]
    others = math.prod(sizes[axis] for axis in ("tp", "pp", "cp"))
    if shards > 0:
        return local * shards * sizes["dp_replicate"]
    if ranks is None:
        draft.notes.append(
            "training.global_batch_size follows from the number of ranks: the recipe has that of "
            "one rank for each copy; give --ranks=N for another"
        )
        return local * sizes["dp_replicate"]
    unit = others * sizes["dp_replicate"]
    if ranks % unit:
        raise UsageError(
            f"--ranks={ranks}: expected a multiple of {unit}, the product of all degrees"
        )
    return local * (ranks // others)


def _tokenizer(keys: Keys, draft: Draft) -> None:
    key = keys.first("model.hf_assets_path", "model.tokenizer_path")
    path = keys.peek(key, "")
    file = Path(path, "tokenizer.json")
    if path and file.is_file():
        keys.take(key, "")
        draft.node("data.tokenizer", "HuggingFaceTokenizer", path=str(file))
    else:
        keys.leave(key, "there is no tokenizer.json; the recipe reads bytes")


def _optimizer(keys: Keys, draft: Draft) -> None:
    if keys.peek("optimizer.name", "AdamW") == "AdamW":
        keys.take("optimizer.name", "AdamW")
    keys.leave("optimizer.name", "the recipe has AdamW")
    draft.decay_everything(keys.take("optimizer.weight_decay", 0.1))
    betas = keys.take("optimizer.beta1", 0.9), keys.take("optimizer.beta2", 0.95)
    draft.set("optimizer.betas", betas)
    draft.set("optimizer.eps", keys.take("optimizer.eps", 1e-8))
    if keys.peek("optimizer.implementation", "") in ("fused", "foreach"):
        draft.set("optimizer.kernel", keys.take("optimizer.implementation", ""))
    keys.leave("optimizer.implementation", "AdamW is fused or foreach")


def _schedule(keys: Keys, draft: Draft) -> None:
    steps = draft.run["steps"]
    warmup = min(keys.take("lr_scheduler.warmup_steps", 200), steps)
    least = keys.take(keys.first("lr_scheduler.min_lr_factor", "lr_scheduler.lr_min"), 0.0)
    ratio = keys.find("lr_scheduler.decay_ratio", float)
    rest = max(steps - warmup, 1)
    share = 1.0 if ratio is None else min(round(steps * ratio), rest) / rest
    kind = keys.peek("lr_scheduler.decay_type", "linear")
    if kind == "linear" or (kind == "cosine" and share == 1.0):
        keys.take("lr_scheduler.decay_type", "linear")
    keys.leave("lr_scheduler.decay_type", "the recipe decays along a straight line")
    if share == 1.0:
        name = "Cosine" if kind == "cosine" else "Linear"
        draft.node("schedule", name, warmup_steps=warmup, final=least)
    elif share > 0:
        draft.node(
            "schedule", "WarmupStableDecay", warmup_steps=warmup, final=least, decay_fraction=share
        )
    else:
        draft.node("schedule", "Linear", warmup_steps=warmup, final=1.0)


def _around(keys: Keys, draft: Draft) -> None:
    """Carry what does not change training: metrics, checkpoints, validation."""
    draft.set("metrics.log_interval", keys.take("metrics.log_freq", 10))
    if keys.take("metrics.enable_tensorboard", False):
        keys.leave("metrics.save_tb_folder", _FOLDER)
    else:
        keys.take("metrics.save_tb_folder", "tb")
        draft.call("tensorboard", on=False)
    if keys.take("metrics.enable_wandb", False):
        draft.call("wandb")
    if keys.peek("profiling.enable_profiling", False):
        keys.leave_section("profiling.", "profile some steps by fiddler:profile(start, steps)")
    else:
        keys.without_effect("profiling.")
    _checkpoints(keys, draft)
    _validation(keys, draft)
    keys.leave("job.dump_folder", _FOLDER)
    keys.leave("job.description", "a recipe's text is its docstring")


def _checkpoints(keys: Keys, draft: Draft) -> None:
    key = keys.first("checkpoint.enable", "checkpoint.enable_checkpoint")
    if not keys.take(key, False):
        keys.without_effect("checkpoint.")
        draft.set("checkpointer.interval", draft.run["steps"])
        draft.notes.append(f"{key} = False: a run of nanigpt always saves its last step")
        return
    draft.set("checkpointer.interval", keys.take("checkpoint.interval", 500))
    kept = keys.take("checkpoint.keep_latest_k", 10)
    draft.set("checkpointer.keep", kept or None)
    keys.leave("checkpoint.folder", _FOLDER)
    keys.leave(
        "checkpoint.initial_load_path", "give Hugging Face weights by set:initial_weights=DIR"
    )


def _validation(keys: Keys, draft: Draft) -> None:
    if not keys.take(keys.first("validation.enable", "validation.enabled"), False):
        keys.without_effect("validation.")
        draft.set("evaluations", {})
        return
    draft.set('evaluations["val"].interval', keys.take("validation.freq", 10))
    size = keys.take("validation.local_batch_size", 8)
    draft.set('evaluations["val"].batch_size', size)
    steps = keys.take("validation.steps", -1)
    if steps > 0:
        draft.set('evaluations["val"].n_samples', steps * size)
    keys.leave("validation.dataset", "the recipe holds out a part of its corpus")
    keys.leave("validation.dataset_path", "the recipe holds out a part of its corpus")
