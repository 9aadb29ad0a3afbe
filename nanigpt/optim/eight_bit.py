"""AdamW with moments in 8 bits: torchao's, with learning rates that are plain numbers."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torchao.optim import AdamW8bit


class EightBitAdamW(AdamW8bit):
    """AdamW with moments that are quantized block by block (Dettmers et al., 2022).

    A rank quantizes its part of a parameter in blocks of 256 elements. Parts with less than 4096
    elements, or with a number that is not a multiple of 256, stay in float32.
    """

    def __init__(
        self, params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        rates = [group.get("lr", lr) for group in params]
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        # torchao makes tensors of the rates, which have no value when they are on meta.
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have gradients; return the closure's loss, or None."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:  # torchao compiles, and numbers would be constants
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        # On a CPU, compiling takes long and gains nothing.
        eager = torch.compiler.set_stance("force_eager") if on_cpu else contextlib.nullcontext()
        with eager:
            loss = super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate
        return loss
