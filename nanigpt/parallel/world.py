"""The processes of the run, and the place of this process among them."""

import gc
import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import distributed as dist

from nanigpt.errors import RankError, UsageError
from nanigpt.problems import require_choice

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and the device of this process."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, text: str) -> list[str]:
        """Return the texts of all ranks, in order of rank, on every rank."""
        texts = [text] * self.size
        if self.size > 1:
            dist.all_gather_object(texts, text)
        return texts

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def launched_ranks() -> int:
    """Return the number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_world(device: Device = "auto") -> World:
    """Join the process group that a launcher such as torchrun describes in the environment.

    Without a launcher, the world has only this process and no process group. CPUs use gloo, and
    CUDA devices use NCCL.

    Args:
        device: `cpu`, `cuda`, or `auto`, which means CUDA if it is available.

    Raises:
        UsageError: The device is not available.
    """
    require_choice(get_args(Device), device=device)
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device='cuda': this machine has no usable CUDA device; use auto or cpu")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    size = launched_ranks()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise RankError(
                f"local rank {local_rank} has no GPU: this node has {torch.cuda.device_count()}; "
                "lower --nproc-per-node or set device='cpu'"
            )
        torch.cuda.set_device(local_rank)
    here = torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)
    if size == 1:
        return World(rank=0, size=1, device=here)
    if not dist.is_initialized():
        # CUDA needs gloo too, for tensors that are offloaded to the host's memory.
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        dist.init_process_group(backend, device_id=here if kind == "cuda" else None)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=here)


def stop_world() -> None:
    """Leave the process group, if this process is in one. All ranks call this together."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    # A model in a reference cycle may still hold a group, which would outlive this call. Its
    # threads sometimes abort the interpreter at exit (2 of 6 times in a trial).
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()
