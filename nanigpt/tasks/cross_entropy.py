"""Loss functions.

They call the head themselves: a sharded head has its weight only while it is called. They sum over
tokens: gradient accumulation and data parallelism divide by the global count.

Shapes: B batch, L sequence, D dim, V vocab_size; T = B x L tokens.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt.data.batch import IGNORED
from nanigpt.problems import refuse, require_not_negative
from nanigpt.tags import Unit
from nanigpt.tasks.linear_cross_entropy import (
    VocabularyPart,
    chunk_loss,
    linear_cross_entropy,
)


class CrossEntropy:
    """Next-token cross-entropy in nats, in float32 for any compute dtype.

    All logits are in memory at once, in the compute dtype and several times in float32. This loss
    is not compiled.

    Args:
        z_loss: Coefficient, in training, of the squared logarithm of the softmax's denominator,
            which is added for each label and keeps logits from drifting (Chowdhery et al., 2022,
            section 5, use 1e-4). Validation leaves it out.
    """

    splits_logits = True

    def __init__(self, *, z_loss: float = 0.0):
        require_not_negative(z_loss=z_loss)
        self.z_loss = z_loss

    def __call__(
        self, head: nn.Module, x_BLD: torch.Tensor, labels_BL: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over labels that are not `IGNORED`, a scalar."""
        logits_TV, labels_T = head(x_BLD).flatten(0, 1).float(), labels_BL.flatten()
        loss = F.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED, reduction="sum")
        if self.z_loss and torch.is_grad_enabled():
            denominators_T = _whole(_logsumexp(logits_TV))
            squares_T = denominators_T.square().where(labels_T != IGNORED, 0.0)
            return _whole(loss) + self.z_loss * squares_T.sum()
        return _whole(loss)


class LinearCrossEntropy:
    """Next-token cross-entropy that computes head and loss together, chunk by chunk of tokens.

    It equals `CrossEntropy`, but never holds all logits. With tensor parallelism each rank has the
    logits of its part of the vocabulary, even if `loss_parallel` is off. The head multiplies in the
    compute dtype: for a float8 head, use `CrossEntropy`.

    Args:
        chunk_size: Number of tokens whose logits are held at a time. They take 8 bytes per token
            and word: 1 GB for 1024 tokens and 128256 words. Smaller chunks add to the weight's
            gradient, in float32, more often: on a GPU one addition costs as much as the product of
            about 500 tokens.
        z_loss: As in `CrossEntropy`.
    """

    splits_logits = True
    head_takes_product = True

    def __init__(self, *, chunk_size: Annotated[int, Unit("tokens")] = 1024, z_loss: float = 0.0):
        if chunk_size < 1:
            refuse("chunk_size", chunk_size, "at least 1 token")
        require_not_negative(z_loss=z_loss)
        self.chunk_size = chunk_size
        self.z_loss = z_loss
        self.compute = linear_cross_entropy

    def compile(self, compiled: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Replace the function that computes a chunk by the result of `compiled`."""
        self.compute = functools.partial(linear_cross_entropy, chunk=compiled(chunk_loss))

    def __call__(
        self, head: nn.Module, x_BLD: torch.Tensor, labels_BL: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum over labels that are not `IGNORED`, a scalar."""

        # These are tensors, or DTensors if ranks share the vocabulary.
        def product(x_BLD: Any, weight_VD: Any, bias_V: Any) -> torch.Tensor:
            part = None
            if hasattr(weight_VD, "placements"):
                from torch.distributed.tensor import Partial

                mesh = weight_VD.device_mesh
                part = VocabularyPart(
                    mesh.get_local_rank(), mesh.size(), mesh.get_group().group_name
                )
                x_BLD = x_BLD.to_local(grad_placements=[Partial()])
                weight_VD = weight_VD.to_local()
                bias_V = None if bias_V is None else bias_V.to_local()
            return self.compute(
                x_BLD.flatten(0, 1),
                weight_VD,
                bias_V,
                labels_BL.flatten(),
                chunk_size=self.chunk_size,
                z_loss=self.z_loss if torch.is_grad_enabled() else 0.0,
                part=part,
                soft_cap=getattr(head, "soft_cap", None),
            )

        return head(x_BLD, product)


def _logsumexp(logits_TV: torch.Tensor) -> torch.Tensor:
    """Compute `torch.logsumexp`, but do not gather logits that are split over ranks."""
    highest_T1 = logits_TV.detach().amax(-1, keepdim=True)
    return (logits_TV - highest_T1).exp().sum(-1).log() + highest_T1[:, 0]


def _whole(x: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor; results computed from logits split over ranks are DTensors."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x
