"""Ring attention: keys and values go from rank to rank while queries stay (Liu et al., 2023).

PyTorch defines the order of steps, the halves of positions that see each other, the merging of
partial results, and the kernel.

Shapes: B batch, L a rank's positions, H query heads, G KV heads, K head_dim.
"""

from typing import Any

import torch
from torch import distributed as dist


def ring_attention(
    q_BHLK: torch.Tensor, k_BGLK: torch.Tensor, v_BGLK: torch.Tensor, group: dist.ProcessGroup
) -> torch.Tensor:
    """Return out_BHLK of causal attention over the positions of all ranks.

    Each rank has one early and one late chunk of positions (`nanigpt.parallel.context`).
    """
    return _Ring.apply(q_BHLK, k_BGLK, v_BGLK, group)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, group: dist.ProcessGroup) -> torch.Tensor:
        from torch.distributed.tensor.experimental._context_parallel import _attention as upstream

        upstream.set_rotate_method("alltoall")
        groups = q.shape[1] // k.shape[1]
        cpu = q.device.type == "cpu"
        kernel = _aten("_scaled_dot_product_flash_attention" + ("_for_cpu" if cpu else ""))

        def attend(q: Any, k: Any, v: Any, is_causal: bool) -> Any:
            # Heads are repeated here, so that the ring sends each head only once.
            k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
            return kernel(q, k, v, is_causal=is_causal)

        operator: Any = attend
        out, logsumexp, *rest = upstream._templated_ring_attention(
            group, 2, operator, q, k, v, is_causal=True
        )
        # These are the cumulative lengths of the CUDA kernel (None without ragged sequences), the
        # maxima, and the two halves of its random state. Without dropout, nothing depends on the
        # random state.
        ctx.of_kernel = None if cpu else rest[:6]
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.group, ctx.groups, ctx.cpu = group, groups, cpu
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from torch.distributed.tensor.experimental._context_parallel import _attention as upstream

        q, k, v, out, logsumexp = ctx.saved_tensors
        name = "_scaled_dot_product_flash_attention"
        kernel = _aten(name + ("_for_cpu_backward" if ctx.cpu else "_backward"))
        more: dict[str, Any] = {"dropout_p": 0.0}
        if not ctx.cpu:
            names = ("cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset")
            more |= dict(zip(names, ctx.of_kernel, strict=True))

        def attend_backward(query: Any, key: Any, value: Any, **kwargs: Any) -> Any:
            key, value = (x.repeat_interleave(ctx.groups, 1) for x in (key, value))
            grads = kernel(query=query, key=key, value=value, **kwargs)
            grad_q, *of_heads = grads
            return grad_q, *(x.unflatten(1, (-1, ctx.groups)).sum(2) for x in of_heads)

        grads = upstream._templated_ring_attention_backward(
            ctx.group,
            2,
            attend_backward,
            grad_out=grad_out.contiguous(),
            grad_out_name="grad_out",
            query=q,
            key=k,
            value=v,
            out=out,
            logsumexp=logsumexp,
            is_causal=True,
            **more,
        )
        return *grads[:3], None


def _aten(name: str) -> Any:
    return getattr(torch.ops.aten, name).default
