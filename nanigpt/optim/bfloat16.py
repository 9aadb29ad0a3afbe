"""AdamW with moments in bfloat16."""

from collections.abc import Iterator
from typing import Any

import torch

from nanigpt.optim.batched import BatchedOptimizer, Parameters, gradients, local

_BATCH = 2**26  # elements that have moments in float32 at a time, 512 MiB


class BFloat16AdamW(BatchedOptimizer):
    """AdamW that computes in float32 and then rounds the moments to the nearest number.

    Weights stay in float32. Only the moments take half the memory.
    """

    def __init__(
        self, params: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        batch: Parameters = []
        elements = 0
        for parameter, shard in zip(parameters, local(parameters), strict=True):
            if batch and elements + shard.numel() > _BATCH:
                yield batch
                batch, elements = [], 0
            batch.append(parameter)
            elements += shard.numel()
        if batch:
            yield batch

    def _update(self, batch: Parameters, group: dict[str, Any]) -> None:
        states = [self._state(p) for p in batch]
        # Each shard is updated alone, since no operation looks beyond an element.
        weights, grads = local(batch), gradients(batch)
        kept = [local([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")]
        means, squares = [[x.float() for x in moments] for moments in kept]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        for moments, exact in zip(kept, (means, squares), strict=True):
            torch._foreach_copy_(moments, exact)

        torch._foreach_add_([state["step"] for state in states], 1)
        steps = [state["step"].item() for state in states]  # on the host, so nothing waits
        torch._foreach_sqrt_(squares)
        torch._foreach_div_(squares, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(squares, group["eps"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        sizes = [-group["lr"] / (1 - beta1**step) for step in steps]
        torch._foreach_addcdiv_(weights, means, squares, sizes)

    def _state(self, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device="cpu")
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        return state
