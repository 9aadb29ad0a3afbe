"""Loss functions.

Shapes: B batch, L sequence, V vocab_size.
"""

import torch
from torch.nn import functional as F

from nanigpt.data.dataset import IGNORED


class CrossEntropy:
    """Next-token cross-entropy in nats, summed, in float32 whatever the logits' dtype.

    The sum, not the mean: gradient accumulation and data parallelism divide by the global count of
    tokens.
    """

    def __call__(self, logits_BLV: torch.Tensor, labels_BL: torch.Tensor) -> torch.Tensor:
        """Returns the sum over labels that are not `IGNORED`, a scalar."""
        loss = F.cross_entropy(
            logits_BLV.flatten(0, 1).float(),
            labels_BL.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        # Of logits that are split over ranks the loss is a DTensor, the same on each of them.
        return loss.full_tensor() if hasattr(loss, "full_tensor") else loss
