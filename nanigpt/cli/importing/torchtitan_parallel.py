"""The parts of a TOML of torchtitan about parallelism, recomputation, compile and float8."""

from nanigpt.cli.importing.draft import Draft
from nanigpt.cli.importing.keys import Keys
from nanigpt.errors import UsageError

AXES = {
    "dp_replicate": ("data_parallel_replicate_degree", 1),
    "dp_shard": ("data_parallel_shard_degree", -1),
    "tp": ("tensor_parallel_degree", 1),
    "pp": ("pipeline_parallel_degree", 1),
    "cp": ("context_parallel_degree", 1),
}


def degrees(keys: Keys) -> dict[str, int]:
    """Return sizes of the mesh, and leave the keys where they are."""
    return {axis: keys.peek(f"parallelism.{key}", least) for axis, (key, least) in AXES.items()}


def mesh(keys: Keys, draft: Draft) -> None:
    """Carry the sizes of the mesh, and how its axes are used."""
    for axis, (key, least) in AXES.items():
        size = keys.take(f"parallelism.{key}", least)
        if size != least:
            draft.set(f"parallelizer.mesh.{axis}", size)
        if axis == "pp":
            _pipeline(keys, draft, size)
        if axis == "cp":
            _context(keys, draft, size)
    reshard = keys.take("parallelism.fsdp_reshard_after_forward", "default")
    if reshard != "default":
        draft.set("parallelizer.fsdp.reshard_after_forward", reshard)
    if keys.take("parallelism.disable_loss_parallel", False):
        draft.set("parallelizer.tensor.loss_parallel", False)


def _pipeline(keys: Keys, draft: Draft, ranks: int) -> None:
    if ranks == 1:
        keys.without_effect("parallelism.pipeline_parallel_")
        return
    schedule = keys.take("parallelism.pipeline_parallel_schedule", "1F1B")
    size = keys.take("parallelism.pipeline_parallel_microbatch_size", 1)
    draft.set("parallelizer.pipeline.schedule", schedule)
    draft.set("parallelizer.pipeline.microbatches", draft.run["local_batch_size"] // size)


def _context(keys: Keys, draft: Draft, ranks: int) -> None:
    key = "parallelism.context_parallel_rotate_method"
    if ranks == 1 or keys.peek(key, "allgather") == "allgather":
        keys.take(key, "allgather")
    keys.leave(key, "the recipe gathers keys and values")


def recomputation(keys: Keys, draft: Draft) -> None:
    """Carry the mode of each layer's recomputation."""
    mode = keys.choose("activation_checkpoint.mode", "selective", "full", "none", "memory_budget")
    option = keys.take("activation_checkpoint.selective_ac_option", "2")
    budget = keys.take("activation_checkpoint.memory_budget", 0.5)
    keys.without_effect("activation_checkpoint.per_op_sac_force_recompute")  # routers
    if mode == "memory_budget":
        draft.set("parallelizer.recomputation.budget", budget)
        draft.each_layer("activation_checkpointing", "budget")
    elif mode == "selective" and option != "op":
        n = int(option) if option.isdecimal() else 0  # every n-th layer recomputes all
        if n < 1:
            raise UsageError(
                f"activation_checkpoint.selective_ac_option={option!r}: expected 'op' or a number"
            )
        draft.each_layer("activation_checkpointing", "full", layers=f"[{n - 1}::{n}]")
    elif mode != "none":
        draft.each_layer("activation_checkpointing", mode)


def compile(keys: Keys, draft: Draft) -> bool:
    """Compile the model as the file says; return whether it is compiled."""
    on = keys.take(keys.first("compile.enable", "training.compile"), False)
    backend = keys.take("compile.backend", "inductor")
    parts = keys.words("compile.components") or ["model", "loss"]
    if on and "model" in parts:
        draft.call("compile", backend=backend, loss="loss" in parts)
    others = [part for part in parts if part not in ("model", "loss")]
    if on and (others or "model" not in parts):
        draft.notes.append(
            f"compile.components = {parts}: nanigpt compiles model and loss, or model"
        )
    return on and "model" in parts


def float8(keys: Keys, draft: Draft) -> None:
    """Carry the converters that make projections float8 or mxfp8."""
    converters = keys.words("model.converters")
    for converter in converters:
        short = converter.removeprefix("quantize.linear.")
        section = f"{converter}."
        if short not in ("float8", "mx"):
            draft.notes.append(f"model.converters: nanigpt has no converter {converter!r}")
            continue
        recipe = keys.take(f"{section}recipe_name", "tensorwise")
        skipped = keys.words(f"{section}filter_fqns")
        others = [name for name in skipped if name != "output"]
        head = short == "float8" and "output" not in skipped
        draft.call(
            "float8",
            recipe="mxfp8" if short == "mx" else recipe,
            emulate=keys.take(f"{section}emulate", False),
            head=head,
        )
        if head:  # the recipe's own loss multiplies with the head's weight in the compute dtype
            draft.node("task.loss", "CrossEntropy")
        if others:
            draft.notes.append(
                f"{section}filter_fqns = {others}: these layers train in float8, too"
            )
        gathers = keys.find(f"{section}enable_fsdp_float8_all_gather", bool)
        if gathers is not None:
            draft.set("parallelizer.float8.all_gather", gathers)
        keys.neutral({f"{section}precompute_float8_dynamic_scale_for_fsdp": True})
        keys.neutral({f"{section}precompute_float8_dynamic_scale_for_fsdp": False})
    for section in ("float8", "mx", "quantize.linear.float8", "quantize.linear.mx"):
        if section not in converters:
            keys.without_effect(f"{section}.")
