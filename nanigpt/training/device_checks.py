"""What a kind of device cannot do."""

import torch

from nanigpt.errors import UsageError
from nanigpt.models.attention_core import FlexAttention
from nanigpt.models.decoder import Decoder
from nanigpt.models.varlen_attention import VarLen
from nanigpt.parallel.parallelizer import Parallelizer


def check_device(model: Decoder, parallelizer: Parallelizer, kind: str) -> None:
    """Checks whether a device of this kind, `cpu` or `cuda`, can train `model`.

    Raises:
        UsageError: it cannot.
    """
    cores = [type(block.attention.core) for block in model.blocks()]
    if kind == "cpu" and FlexAttention in cores:
        raise UsageError(
            "model.layers[*].attention.core: FlexAttention has no backward pass on a CPU; set "
            "tag:AttentionCore=None there"
        )
    if kind == "cpu" and VarLen in cores:
        raise UsageError(
            "model.layers[*].attention.core: VarLen's kernel is of CUDA devices; set "
            "tag:AttentionCore=None on a CPU"
        )
    for block in model.blocks():
        kernels = getattr(block.attention.core, "kernels", None)
        if kind == "cpu" and kernels is not None and not {"flash", "math"} & set(kernels):
            raise UsageError(
                f"model.layers[*].attention.core.kernels={kernels}: a CPU has 'flash' and 'math'; "
                "add one, or set kernels=None"
            )
    computed = model.embedding.compute_dtype
    if kind == "cuda" and VarLen in cores and computed not in (torch.bfloat16, torch.float16):
        raise UsageError(
            f"model.layers[*].attention.core: VarLen's kernel computes in bfloat16, not in "
            f"{computed}; add --config=tag:ComputeDType=bfloat16, or take another "
            "tag:AttentionCore"
        )
    if kind == "cpu" and parallelizer.tensor.asynchronous and parallelizer.mesh.axes["tp"] != 1:
        raise UsageError(
            "parallelizer.tensor.asynchronous=True: expected CUDA devices with symmetric "
            "memory; set it to False on a CPU"
        )
    parallelizer.float8.check_device(model, kind)
    ring = parallelizer.context.method == "ring"
    if kind == "cuda" and ring and computed == torch.float32:
        raise UsageError(
            "parallelizer.context.method='ring': its kernel computes in bfloat16 on CUDA; add "
            "--config=tag:ComputeDType=bfloat16, or take 'all_gather'"
        )
