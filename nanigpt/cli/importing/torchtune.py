"""A YAML of torchtune that trains a Llama, as a recipe. Names of components are only compared."""

from pathlib import Path
from typing import Any

from nanigpt.cli.importing.draft import Draft, Source
from nanigpt.cli.importing.keys import Keys
from nanigpt.cli.importing.llama_sizes import LONGEST, THETA, TORCHTUNE
from nanigpt.errors import UsageError
from nanigpt.words import one_of

_STEPS = 1000  # if the file leaves their number to the size of the dataset
_LONGEST = 8192  # tokens in a sequence, if the file does not say

# Values that ask for nothing, or for what nanigpt does anyway.
_NEUTRAL = {
    "device": "cuda",
    "shuffle": True,
    "resume_from_checkpoint": False,
    "optimizer_in_bwd": False,
    "enable_activation_offloading": False,
    "fsdp_cpu_offload": False,
    "custom_sharded_layers": [],
    "save_adapter_weights_only": False,
    "log_peak_memory_stats": True,
    "memory_efficient_fsdp_wrap": True,
    "dataset.packed": True,
    "optimizer.fused": True,
    "checkpointer.recipe_checkpoint": None,
}
_FOLDER = "a run's files are in the folder of --run_dir"
_LOSSES = ("CEWithChunkedOutputLoss", "LinearCrossEntropyLoss", "CrossEntropyLoss")


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
    _memory(keys, draft)
    _data(keys, draft)
    _around(keys, draft)
    keys.rest()


def _model(keys: Keys, draft: Draft) -> None:
    component = keys.take("model._component_", "")
    family, _, name = component.removeprefix("torchtune.models.").rpartition(".")
    base = name.removeprefix("qlora_").removeprefix("lora_")
    place = f"{family}.{base}"
    if component.startswith("torchtune.models.") and base == family and "model.embed_dim" in keys:
        sizes = _own_sizes(keys, family)
    elif component.startswith("torchtune.models.") and place in TORCHTUNE:
        sizes = TORCHTUNE[place]
    else:
        known = one_of(f"torchtune.models.{place}" for place in TORCHTUNE)
        raise UsageError(f"model._component_={component!r}: expected {known}")
    if base != name:
        keys.leave_section("model.", "nanigpt trains all weights, without LoRA")
        draft.notes.append(f"model._component_ = {component!r}: the recipe trains all weights")
    key = keys.first("tokenizer.max_seq_len", "dataset.max_seq_len")
    length = keys.find(key, int) or min(LONGEST.get(family, _LONGEST), _LONGEST)
    draft.model = {**sizes, "sequence_length": length}
    if keys.choose("dtype", "bf16", "fp32") == "fp32":
        draft.model["compute_dtype"] = Source("torch.float32")
    theta = keys.take("model.rope_base", THETA.get(family, 500_000.0))
    if theta != 500_000.0:
        draft.set("model.layers[0].attention.rope.theta", theta)  # all layers share it
    _norms(keys, draft)


def _own_sizes(keys: Keys, family: str) -> dict[str, Any]:
    """Return sizes that the file gives one by one."""
    dim = keys.take("model.embed_dim", 0)
    heads = keys.take("model.num_heads", 0)
    sizes: dict[str, Any] = {
        "dim": dim,
        "n_layers": keys.take("model.num_layers", 0),
        "n_heads": heads,
        "n_kv_heads": keys.take("model.num_kv_heads", heads),
        "hidden_dim": keys.take("model.intermediate_dim", 0) or _hidden_dim(dim),
        "vocab_size": keys.take("model.vocab_size", 0),
    }
    least = {name: size for name, size in sizes.items() if size < 1}
    if least:
        raise UsageError(f"model: expected more than 0 for {', '.join(least)}")
    scaling = {"llama3_1": 8.0, "llama3_2": 32.0}.get(family)
    factor = keys.find("model.scale_factor", float)
    if scaling is not None:
        sizes["rope_scaling_factor"] = scaling if factor is None else factor
    if family == "llama3_2":
        sizes["tied"] = keys.take("model.tie_word_embeddings", True)
    keys.neutral({"model.attn_dropout": 0.0, "model.max_seq_len": _LONGEST})
    keys.leave("model.max_seq_len", "the model has the positions of the training sequences")
    return sizes


def _hidden_dim(dim: int) -> int:
    """Return torchtune's default: 8/3 of the width, up to a multiple of 256."""
    return -(-(8 * dim // 3) // 256) * 256


def _norms(keys: Keys, draft: Draft) -> None:
    eps = keys.take("model.norm_eps", 1e-5)
    if eps != 1e-5:
        draft.lines += [
            f"cfg.model.norm.eps = {eps!r}",
            "for layer in cfg.model.layers:",
            f"    layer.attention_norm.eps = layer.feed_forward_norm.eps = {eps!r}",
        ]


def _training(keys: Keys, draft: Draft, ranks: int | None) -> None:
    local = keys.take("batch_size", 1)
    passes = keys.take("gradient_accumulation_steps", 1)
    whole = {
        "tp": keys.take("tensor_parallel_dim", 1),
        "cp": keys.take("context_parallel_dim", 1),
    }
    shards = keys.take("data_parallel_shard_dim", -1)
    copies = keys.take("data_parallel_replicate_dim", 1)
    for axis, size in {**whole, "dp_replicate": copies}.items():
        if size != 1:
            draft.set(f"parallelizer.mesh.{axis}", size)
    if shards != -1:
        draft.set("parallelizer.mesh.dp_shard", shards)
    readers = copies * shards if shards > 0 else copies
    if shards <= 0 and ranks is not None:
        unit = whole["tp"] * whole["cp"]
        if ranks % (unit * copies):
            raise UsageError(f"--ranks={ranks}: expected a multiple of {unit * copies}")
        readers = ranks // unit
    elif shards <= 0:
        draft.notes.append(
            "the global batch size follows from the number of ranks: the recipe has that of one "
            "rank for each copy; give --ranks=N for another"
        )
    draft.run = {
        "lr": keys.take("optimizer.lr", 1e-3),
        "global_batch_size": local * passes * readers,
        "local_batch_size": local,
        "steps": _steps(keys, draft),
        "sequence_length": draft.model["sequence_length"],
    }
    seed = keys.find("seed", int)
    if seed is not None:
        draft.set("seed", seed)
    norm = keys.find("clip_grad_norm", float)
    if norm is None:
        draft.notes.append("clip_grad_norm is not given: the recipe clips gradients at norm 1")
    else:
        draft.set("max_grad_norm", norm)


def _steps(keys: Keys, draft: Draft) -> int:
    epochs = keys.peek("epochs", 1)
    each = keys.find("max_steps_per_epoch", int)
    if each is not None:
        keys.take("epochs", 1)
        return epochs * each
    reason = f"the file leaves the number of steps to its dataset; the recipe has {_STEPS:,}"
    if "epochs" in keys:
        keys.leave("epochs", reason)
    else:
        draft.notes.append(f"epochs: {reason}")
    return _STEPS


def _optimizer(keys: Keys, draft: Draft) -> None:
    if keys.peek("optimizer._component_", "") == "torch.optim.AdamW":
        keys.take("optimizer._component_", "")
    keys.leave(
        "optimizer._component_",
        "the recipe has AdamW in float32; fiddler:optimizer_state(8bit) has 8 bits",
    )
    draft.decay_everything(keys.take("optimizer.weight_decay", 0.01))  # torch's default
    draft.set("optimizer.betas", keys.numbers("optimizer.betas", (0.9, 0.999)))
    draft.set("optimizer.eps", keys.take("optimizer.eps", 1e-8))
    if keys.take("optimizer.foreach", False):
        draft.set("optimizer.kernel", "foreach")
    keys.leave("optimizer.fused", "the recipe's AdamW is fused")


def _schedule(keys: Keys, draft: Draft) -> None:
    component = keys.peek("lr_scheduler._component_", "")
    if component.endswith(".get_cosine_schedule_with_warmup"):
        keys.take("lr_scheduler._component_", "")
        warmup = min(keys.take("lr_scheduler.num_warmup_steps", 0), draft.run["steps"])
        draft.node("schedule", "Cosine", warmup_steps=warmup, final=0.0)
        keys.neutral({"lr_scheduler.num_cycles": 0.5})
        keys.leave("lr_scheduler.num_cycles", "the recipe has half a wave")
    else:
        keys.leave_section("lr_scheduler.", "the recipe's learning rate is constant")
        draft.node("schedule", "Linear", warmup_steps=0, final=1.0)


def _memory(keys: Keys, draft: Draft) -> None:
    if keys.take("enable_activation_checkpointing", False):
        draft.each_layer("activation_checkpointing", "full")
    if keys.take("fsdp_cpu_offload", False):
        draft.set("parallelizer.fsdp.cpu_offload", True)
    if keys.take("compile", False):
        draft.call("compile")
    loss = keys.peek("loss._component_", "")
    if loss.rpartition(".")[2] in _LOSSES:
        keys.take("loss._component_", "")
    if keys.choose("device", "cuda", "cpu") == "cpu":
        draft.set("device", "cpu")


def _data(keys: Keys, draft: Draft) -> None:
    files = keys.peek("dataset.data_files", "")
    if keys.peek("dataset._component_", "").endswith(".text_completion_dataset") and files:
        keys.choose("dataset.source", "text", "json", "parquet")
        for key in ("_component_", "data_files"):
            keys.take(f"dataset.{key}", "")
        draft.set("data.corpus.path", files)
        draft.set("data.corpus.text_field", keys.take("dataset.column", "text"))
    keys.leave_section(
        "dataset.", "the recipe reads its own corpus; give files by set:data.corpus.path=..."
    )
    path = keys.peek(keys.first("tokenizer.tokenizer_json_path", "tokenizer.path"), "")
    file = Path(path).with_name("tokenizer.json") if path else None
    if file is not None and file.is_file():
        keys.without_effect("tokenizer.")
        draft.node("data.tokenizer", "HuggingFaceTokenizer", path=str(file))
    keys.leave_section("tokenizer.", "there is no tokenizer.json; the recipe reads bytes")


def _around(keys: Keys, draft: Draft) -> None:
    """Carry initial weights, checkpoints, evaluations and metrics."""
    folder = keys.peek("checkpointer.checkpoint_dir", "")
    if folder and Path(folder, "config.json").is_file():
        keys.without_effect("checkpointer.")
        draft.set("initial_weights", folder)
    keys.leave_section(
        "checkpointer.",
        "to begin with Hugging Face weights, give their folder by set:initial_weights=DIR",
    )
    interval = keys.find("save_every_n_steps", int)
    if interval is not None:
        draft.set("checkpointer.interval", interval)
    interval = keys.find("run_val_every_n_steps", int)
    if interval is None:
        draft.set("evaluations", {})
        keys.leave_section("dataset_val.", "the recipe does not evaluate")
    else:
        draft.set('evaluations["val"].interval', interval)
        keys.leave_section("dataset_val.", "the recipe holds out a part of its corpus")
    draft.set("metrics.log_interval", keys.take("log_every_n_steps", 1))
    logger = keys.peek("metric_logger._component_", "").rpartition(".")[2]
    if logger in ("WandBLogger", "TensorBoardLogger", "DiskLogger", "StdoutLogger"):
        keys.take("metric_logger._component_", "")
    if logger == "WandBLogger":
        draft.call("wandb", project=keys.find("metric_logger.project", str))
    elif logger != "TensorBoardLogger":
        draft.call("tensorboard", on=False)
    keys.leave_section("metric_logger.", _FOLDER)
    if not keys.peek("profiler.enabled", False):
        keys.without_effect("profiler.")
    keys.leave_section("profiler.", "profile some steps by fiddler:profile(start, steps)")
    keys.leave("output_dir", _FOLDER)
