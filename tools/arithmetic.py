"""Tell whether two machines round in the same way, so that losses can be compared bit for bit."""

import hashlib
import platform

import torch
from torch.nn import functional as F


def arithmetic() -> dict[str, str]:
    """Describe the arithmetic of this process's CPU: versions, and a digest of computed numbers.

    Two machines with equal digests computed equal bits for the products, sums and functions that a
    model uses. Another torch or another kind of CPU mostly gives another digest.
    """
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "digest": _digest(),
    }


def _digest() -> str:
    generator = torch.Generator().manual_seed(0)
    digest = hashlib.blake2b(digest_size=8)
    for rows, columns, width in ((512, 300, 16), (96, 257, 33), (256, 128, 768)):
        x = torch.randn(rows, width, generator=generator, requires_grad=True)
        w = torch.randn(columns, width, generator=generator, requires_grad=True)
        y = F.linear(F.silu(F.rms_norm(x, (width,))), w)
        q = y[:, : columns // 4 * 4].view(1, rows, 4, -1).transpose(1, 2)
        z = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        loss = F.cross_entropy(y, torch.arange(rows) % columns) + z.sin().exp().sum()
        loss.backward()
        low = y.detach().bfloat16() @ y.detach().bfloat16().T
        for tensor in (loss.detach(), x.grad, w.grad, x.grad.norm(), low.float()):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
