"""Compute the cross-entropy of a linear projection without holding all its outputs at once.

Shapes: T tokens, C tokens of a chunk, D dim, V vocab_size, of which a rank may have a part.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from nanigpt.data.batch import IGNORED
from nanigpt.models.soft_cap import soft_cap as capped


class VocabularyPart(NamedTuple):
    """Index of this rank's part among `size` equal parts of the vocabulary, and their group."""

    rank: int
    size: int
    group_name: str


def chunk_loss(
    x_CD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_C: torch.Tensor,
    valid_C: torch.Tensor,
    z_loss: float,
    part: VocabularyPart | None,
    soft_cap: float | None = None,
    *,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sum of losses of a chunk's valid labels.

    On request, also return the gradient of all losses with respect to the logits, in the dtype of
    x.
    """
    logits_CV = F.linear(x_CD, weight_VD, bias_V)
    slope_CV = None
    if soft_cap is not None:
        logits_CV = capped(logits_CV, soft_cap)
        slope_CV = 1.0 - (logits_CV.float() / soft_cap).square() if gradient else None
    index_C, here_C = labels_C, valid_C
    if part is not None:
        index_C = labels_C - part.rank * logits_CV.shape[1]
        here_C = valid_C & (index_C >= 0) & (index_C < logits_CV.shape[1])
    index_C1 = index_C.where(here_C, 0)[:, None]
    log_CV = F.log_softmax(logits_CV, dim=1, dtype=torch.float32)
    log_C, factor_C = log_CV.gather(1, index_C1)[:, 0], None
    if z_loss or part is not None:
        logit_C = logits_CV.gather(1, index_C1)[:, 0].float()
        lse_C = logit_C - log_C  # logarithm of the denominator
        share_C: torch.Tensor | float = 1.0  # this rank's share of the denominator
        if part is not None:
            both_2C = torch.stack([lse_C, logit_C.where(here_C, 0.0)])
            lse_NC, logits_NC = _gathered(both_2C, part).unbind(1)
            whole_C = lse_NC.logsumexp(0)
            lse_C, share_C = whole_C, (lse_C - whole_C).exp()
            log_C = logits_NC.sum(0) - whole_C
        factor_C = (1.0 + 2.0 * z_loss * lse_C) * share_C
    loss_C = z_loss * lse_C.square() - log_C if z_loss else -log_C
    del logits_CV  # frees its memory for the code that follows
    loss = loss_C.where(valid_C, 0.0).sum()
    if not gradient:
        return loss, None
    gradient_CV = log_CV.exp_()
    if factor_C is not None:
        gradient_CV.mul_(factor_C[:, None])
    gradient_CV.scatter_add_(1, index_C1, here_C[:, None].float().neg_())
    if slope_CV is not None:
        gradient_CV.mul_(slope_CV)
    return loss, gradient_CV.to(x_CD.dtype)


def linear_cross_entropy(
    x_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_T: torch.Tensor,
    *,
    chunk_size: int,
    z_loss: float = 0.0,
    part: VocabularyPart | None = None,
    soft_cap: float | None = None,
    chunk: Callable[..., Any] = chunk_loss,
) -> torch.Tensor:
    """Return the sum of cross-entropies over labels that are not `IGNORED`, a float32 scalar.

    The forward pass computes logits of `chunk_size` tokens at a time, in the dtype of x, and their
    softmax in float32. If gradients are wanted, it computes them together with the logits, so that
    no logits are kept or computed twice; the backward pass scales the gradients. Until then there
    is one gradient of x and one of the weight, which is summed in float32.

    Args:
        x_TD: Inputs, the same on each of the ranks that share a vocabulary.
        weight_VD: Weight in the dtype of x, as is `bias_V`.
        labels_T: Labels from the whole vocabulary.
        z_loss: Coefficient of the squared logarithm of the softmax's denominator, added for each
            label.
        part: Part of the vocabulary that weight and bias belong to. The gradient of x then covers
            this part only: the gradients of all ranks add up to the whole one.
        soft_cap: Bound of the logits, as in `nanigpt.models.embedding.Head`.
        chunk: `chunk_loss`, or its compiled version.
    """
    arguments = (x_TD, weight_VD, bias_V, labels_T, chunk_size, z_loss, part, soft_cap, chunk)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(*arguments)
    return _sum(*arguments, wanted=(False, False, False))[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:
        loss, gradients = _sum(*arguments, wanted=ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            raise RuntimeError(
                "linear_cross_entropy has no second derivative, because its forward pass computes "
                "the first one; use CrossEntropy"
            )
        # Do not scale in place: a pipeline asks first for the gradient of x, later for the
        # weight's gradient.
        gradients = [
            gradient * factor if wanted else None
            for gradient, wanted in zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        ]
        return *gradients, *[None] * 6


def _sum(
    x_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_T: torch.Tensor,
    chunk_size: int,
    z_loss: float,
    part: VocabularyPart | None,
    soft_cap: float | None,
    chunk: Callable[..., Any],
    *,
    wanted: tuple[bool, bool, bool],
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Return the loss, and its gradients with respect to x, weight and bias if they are wanted."""
    of_x, of_weight, of_bias = wanted
    loss = x_TD.new_zeros((), dtype=torch.float32)
    parts_x, sum_VD, sum_V = [], None, None
    for x_CD, labels_C in zip(x_TD.split(chunk_size), labels_T.split(chunk_size), strict=True):
        valid_C = labels_C != IGNORED
        loss_of_chunk, gradient_CV = chunk(
            *(x_CD, weight_VD, bias_V, labels_C, valid_C, z_loss, part, soft_cap),
            gradient=any(wanted),
        )
        loss = loss + loss_of_chunk  # torch 2.11 would compile an in-place sum without gradients
        # Labels that are not learned are masked in the products, whose rows are short, not in the
        # logits.
        valid_C1 = valid_C[:, None].to(x_TD.dtype)
        if of_x:
            parts_x.append((gradient_CV @ weight_VD).mul_(valid_C1))
        if of_weight and len(x_CD) == len(x_TD):  # there is nothing to add up
            sum_VD = gradient_CV.t() @ (x_CD * valid_C1)
        elif of_weight:
            sum_VD = _add_product(sum_VD, gradient_CV.t(), x_CD * valid_C1)
        if of_bias:
            column_V = (gradient_CV.t() @ valid_C1)[:, 0].float()
            sum_V = column_V if sum_V is None else sum_V + column_V
        del gradient_CV  # frees it before the next one is computed
    return loss, [
        (torch.cat(parts_x) if parts_x[1:] else parts_x[0]) if of_x else None,
        None if sum_VD is None else sum_VD.to(weight_VD.dtype),
        None if sum_V is None or bias_V is None else sum_V.to(bias_V.dtype),
    ]


def _add_product(
    sum_VD: torch.Tensor | None, a_VC: torch.Tensor, b_CD: torch.Tensor
) -> torch.Tensor:
    """Compute `sum_VD + a_VC @ b_CD` in float32, in place."""
    if sum_VD is None:
        sum_VD = b_CD.new_zeros(a_VC.shape[0], b_CD.shape[1], dtype=torch.float32)
    if a_VC.dtype == torch.float32:
        return sum_VD.addmm_(a_VC, b_CD)
    if not a_VC.is_cuda or torch.version.cuda is None:
        return sum_VD.add_(a_VC @ b_CD)
    if torch.compiler.is_compiling():  # torch 2.11 cannot compile the sum with this output
        return sum_VD.add_(torch.mm(a_VC, b_CD, out_dtype=torch.float32))
    return torch.addmm(sum_VD, a_VC, b_CD, out_dtype=torch.float32, out=sum_VD)


def _gathered(x: torch.Tensor, part: VocabularyPart) -> torch.Tensor:
    """Gather the tensors of all parts, stacked along a new first dim."""
    functional = torch.ops._c10d_functional
    whole = functional.all_gather_into_tensor(x, part.size, part.group_name)
    return functional.wait_tensor(whole).unflatten(0, (part.size, -1))
