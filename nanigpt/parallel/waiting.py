"""Results of collectives that are there."""

import torch


def waited(x: torch.Tensor) -> torch.Tensor:
    """A collective's result once it is there, rather than when it is first used.

    Views that are still to be waited for corrupted memory now and then (gloo, torch 2.13).
    """
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x
