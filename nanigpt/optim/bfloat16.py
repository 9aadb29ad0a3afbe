"""AdamW whose moments are kept in bfloat16."""

from collections.abc import Iterator

import torch

from nanigpt.optim.batched import BatchedOptimizer, Parameters, local

_BATCH = 2**26  # elements whose moments are in float32 at a time, 512 MiB


class BFloat16AdamW(BatchedOptimizer):
    """AdamW that computes in float32 and rounds the moments to nearest when it is done.

    Weights are what they are, float32; only what is kept of their past takes half the memory.
    """

    def __init__(
        self, params: list[dict], *, lr: float, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _batches(self, parameters: Parameters) -> Iterator[Parameters]:
        batch, elements = [], 0
        for parameter, shard in zip(parameters, local(parameters), strict=True):
            if batch and elements + shard.numel() > _BATCH:
                yield batch
                batch, elements = [], 0
            batch.append(parameter)
            elements += shard.numel()
        if batch:
            yield batch

    def _update(self, parameters: Parameters, group: dict) -> None:
        states = [self._state(p) for p in parameters]
        # Shards are updated each by itself: no operation looks beyond an element.
        weights, gradients = local(parameters), local([p.grad for p in parameters])
        kept = [local([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq")]
        means, squares = [[x.float() for x in moments] for moments in kept]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        for moments, exact in zip(kept, (means, squares), strict=True):
            torch._foreach_copy_(moments, exact)

        torch._foreach_add_([state["step"] for state in states], 1)
        steps = [state["step"].item() for state in states]  # on the host, so nobody waits
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
