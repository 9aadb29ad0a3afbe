"""Results of collectives that run at the same time as the computation."""

import torch


def wait_for(x: torch.Tensor) -> torch.Tensor:
    """Wait for a collective's result here, not when it is first used.

    Without the wait, views of results sometimes corrupted memory (gloo, torch 2.13).
    """
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x
