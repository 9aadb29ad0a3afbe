"""Results of collectives that run beside the computation."""

import torch


def wait_for(x: torch.Tensor) -> torch.Tensor:
    """Wait for a collective's result here, rather than when it is first used.

    Views of results that were not waited for corrupted memory now and then (gloo, torch 2.13).
    """
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x
