"""Save checkpoints that are whole or absent, and resume from them bit for bit."""

import contextlib
import json
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from nanigpt.errors import MisfitError, UsageError
from nanigpt.models.float8_recipe import ordinary
from nanigpt.parallel.world import World
from nanigpt.problems import refuse, require_positive
from nanigpt.tags import Unit
from nanigpt.training.run_directory import RunDirectory
from nanigpt.words import listed

log = logging.getLogger(__name__)

_NAME = re.compile(r"step_(\d{8})")
_MANIFEST = "checkpoint.json"  # it holds the progress, and the size of every other file


@dataclass
class Progress:
    """Progress of a run: optimizer steps done, training samples and tokens consumed, and text.

    Learning rate schedule and data order are pure functions of these numbers. `text` is the digest
    of the tokens.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    text: str = ""


class Checkpointer:
    """Saver of checkpoints. It uses torch.distributed.checkpoint.

    It saves every `interval` steps and after the last step.

    Args:
        interval: Steps between checkpoints.
        keep: Number of newest checkpoints to keep; None keeps all.
    """

    may_change_on_resume = True

    def __init__(self, *, interval: Annotated[int, Unit("steps")] = 1000, keep: int | None = 3):
        require_positive(interval=interval)
        if keep is not None and keep < 1:
            refuse("keep", keep, "at least 1, or None")
        self.interval = interval
        self.keep = keep

    def is_due(self, step: int, steps: int) -> bool:
        return step % self.interval == 0 or step == steps

    def save(
        self,
        run: RunDirectory,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        progress: Progress,
    ) -> Path:
        """Write under a temporary name, and publish by one rename.

        Args:
            optimizer: None before the first step; a run that resumes there creates a new optimizer.
        """
        import torch.distributed.checkpoint as dcp

        name = f"step_{progress.step:08d}"
        final, temporary = run.checkpoints / name, run.checkpoints / f".{name}.incomplete"
        if world.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        world.barrier()
        state = {"model": model_state(model), "rng": _rng_state(world)}
        if optimizer is not None:
            state["optimizer"] = _optimizer_state(model, optimizer)
        with _alone_without_warning(world) as alone:
            dcp.save(state, checkpoint_id=temporary, no_dist=alone)
        if world.is_main:
            if run.config.exists():
                shutil.copy(run.config, temporary / "config.json")
            sizes = {p.name: p.stat().st_size for p in temporary.iterdir()}
            manifest = {"progress": asdict(progress), "files": sizes}
            (temporary / _MANIFEST).write_text(json.dumps(manifest) + "\n")
            _synchronize(temporary)
            _remove(final)
            os.replace(temporary, final)
            _synchronize(run.checkpoints)
            for old in list_checkpoints(run)[: -self.keep] if self.keep else []:
                _remove(old)
        world.barrier()
        return final

    def latest(self, run: RunDirectory) -> Path | None:
        """Return the newest whole checkpoint."""
        return next(filter(_is_whole, reversed(list_checkpoints(run))), None)

    def load_latest(
        self,
        run: RunDirectory,
        world: World,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> Progress | None:
        """Load the newest whole checkpoint in place, on any number of ranks.

        Without an optimizer, read only the model. The optimizer stays as it is if the checkpoint
        has no steps. Restore random states if as many ranks wrote the checkpoint.

        Returns:
            The progress of the run, or None if there is no checkpoint.

        Raises:
            MisfitError: The checkpoint belongs to another model or optimizer, or the optimizer's
                state cannot be divided over these ranks.
            UsageError: The checkpoint's metadata are damaged, or would run code.
        """
        folder = self.latest(run)
        if folder is None:
            return None
        import torch.distributed.checkpoint as dcp

        from nanigpt.training.checkpoint_reader import Planner, Reader

        reader = Reader(folder)
        stored = reader.read_metadata().state_dict_metadata
        state: dict[str, Any] = {"model": model_state(model)}
        _require_keys(folder, stored, state["model"])
        if optimizer is not None:
            if any(key.startswith("optimizer.") for key in stored):
                state["optimizer"] = _optimizer_state(model, optimizer)
                _require_state(folder, stored, state["optimizer"])
            rng = _rng_state(world)
            n_stored = len({key.split(".")[1] for key in stored if key.startswith("rng.")})
            if n_stored == world.size and all(f"rng.{k}" in stored for k in _flat(rng)):
                state["rng"] = rng
        with _alone_without_warning(world) as alone, _of_the_same_blocks(folder):
            dcp.load(state, storage_reader=reader, planner=Planner(), no_dist=alone)
        if "rng" in state:
            _set_rng_state(state["rng"], world)
        return Progress(**json.loads((folder / _MANIFEST).read_text())["progress"])


def list_checkpoints(run: RunDirectory) -> list[Path]:
    """Return the published checkpoints, oldest first."""
    if not run.checkpoints.is_dir():
        return []
    return sorted(p for p in run.checkpoints.iterdir() if _NAME.fullmatch(p.name))


def _is_whole(checkpoint: Path) -> bool:
    """Check that every file exists with its size: a disk may fail, and a copy may be cut short."""
    try:
        sizes = json.loads((checkpoint / _MANIFEST).read_text())["files"]
        damaged = [n for n, size in sizes.items() if (checkpoint / n).stat().st_size != size]
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is incomplete (%s): skipped", checkpoint, error)
        return False
    if damaged:
        log.warning("%s is incomplete (size of %s): skipped", checkpoint, ", ".join(damaged))
    return not damaged


def _remove(checkpoint: Path) -> None:
    """Remove the name at once, so that a kill leaves no half checkpoint under it."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(checkpoint, doomed)
        shutil.rmtree(doomed)


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return persistent parameters and buffers, each once, under its first name."""
    persistent = model.state_dict().keys()
    tensors = [*model.named_parameters(), *model.named_buffers()]  # both leave out aliases
    return {name: ordinary(t.detach()) for name, t in tensors if name in persistent}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state by parameter name; create it first if no step was taken yet.

    Learning rates and weight decay come from the config, not from the checkpoint.
    """
    # This is the part of upstream's public function that does not need torch._dynamo, whose import
    # takes seconds.
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    _init_optim_state(optimizer)
    name_of: dict[torch.Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters()
    }
    return {name_of[parameter]: state for parameter, state in optimizer.state.items()}


def _rng_state(world: World) -> dict[str, dict[str, torch.Tensor]]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return {f"rank{world.rank}": state}


def _set_rng_state(rng: dict[str, dict[str, torch.Tensor]], world: World) -> None:
    state = rng[f"rank{world.rank}"]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)


def _flat(nested: dict[str, dict[str, Any]]) -> list[str]:
    return [f"{outer}.{inner}" for outer, inners in nested.items() for inner in inners]


def _require_keys(folder: Path, stored: dict[str, Any], wanted: dict[str, torch.Tensor]) -> None:
    problems = []
    for name, tensor in wanted.items():
        entry = stored.get(f"model.{name}")
        if entry is None:
            problems.append(f"no {name}")
        elif not hasattr(entry, "size"):
            problems.append(f"{name} is no tensor")
        elif entry.size != tensor.shape:
            problems.append(f"{name} is {list(entry.size)}, expected {list(tensor.shape)}")
    if problems:
        told = listed(problems, 5, separator="; ")
        raise MisfitError(f"{folder} belongs to another model: {told}")


def _require_state(folder: Path, stored: dict[str, Any], wanted: dict[str, dict[str, Any]]) -> None:
    missing = [key for key in _flat(wanted) if f"optimizer.{key}" not in stored]
    if missing:
        raise MisfitError(
            f"{folder} belongs to another optimizer: no {listed(missing, 1)}; "
            "resume with the optimizer that wrote it, or begin a new run"
        )


@contextlib.contextmanager
def _of_the_same_blocks(folder: Path) -> Iterator[None]:
    """Raise a readable error when quantised optimizer state cannot be divided as required.

    Raises:
        MisfitError: Blocks would be cut. Each rank formed its blocks from its own part of the
            state.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, UsageError):
                raise failure from error
        stacks = [stack for _, stack in error.failures.values()]
        if not any("torchao" in frame.filename for stack in stacks for frame in stack):
            raise
        raise MisfitError(
            f"{folder}: each rank stored its part of the optimizer's 8-bit state in blocks, and "
            "this mesh would cut them; resume on the earlier mesh, or on one that differs only in "
            "dp_shard (a run with optimizer.state='bfloat16' resumes on any mesh)"
        ) from error


@contextlib.contextmanager
def _alone_without_warning(world: World) -> Iterator[bool]:
    """Yield whether this process is the only one; silence PyTorch's warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield world.size == 1


def _synchronize(folder: Path) -> None:
    """Force the files of a folder, and the folder itself, to disk before its rename."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
