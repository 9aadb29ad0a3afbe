"""Predict the next token, and with multi-token prediction further ones.

Shapes: B batch, L sequence_length, D dim.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from nanigpt.data.batch import IGNORED, TokenBatch
from nanigpt.data.dataset import PackedDataset
from nanigpt.data.tokenizer import ByteTokenizer
from nanigpt.models.decoder import Decoder
from nanigpt.models.shapes import says_all_widths, shape_problems
from nanigpt.models.slots import uncallable
from nanigpt.models.widths import own_name
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.problems import Fix, Problem
from nanigpt.tasks.cross_entropy import CrossEntropy, LinearCrossEntropy
from nanigpt.tasks.loss_check import loss_problems
from nanigpt.tasks.sampler import Sampler
from nanigpt.tasks.task import Task


class Loss(Protocol):
    """Function that sums the losses of all labels that are not `IGNORED`, a float32 scalar.

    It calls the head itself, or multiplies with the head's weight in its own way: a loss that calls
    `head(x, product)` makes the head call `product(x, weight, bias)`, and sets `head_takes_product
    = True`.

    With tensor parallelism every rank has all logits, unless the loss sets `splits_logits = True`:
    then they are DTensors, split over the vocabulary.
    """

    def __call__(
        self, head: nn.Module, x_BLD: torch.Tensor, labels_BL: torch.Tensor, /
    ) -> torch.Tensor: ...


class LanguageModeling(Task[TokenBatch]):
    """Task that trains a decoder to predict the next token of each position.

    Args:
        loss: Loss of the next token, and of further tokens that the model predicts.
        sampler: Sampler of text that the model writes after training, or None.
    """

    # `evaluate` returns these names.
    measures = ("loss", "bits_per_byte")

    def __init__(self, *, loss: Loss, sampler: Sampler | None = None):
        self.loss = loss
        self.sampler = sampler

    def problems(self, model: nn.Module, data: Any, /) -> list[Problem]:
        found = []
        if not hasattr(data, "tokenizer"):
            found.append(Problem("data", ..., f"a tokenizer of {type(data).__name__}"))
        elif isinstance(data.tokenizer, ByteTokenizer):  # the others read a file
            found += self.data_problems(model, data)
        head = getattr(model, "head", None)
        if head is not None and getattr(self.loss, "head_takes_product", False):
            found += _takes_no_product(head, self)
        in_float8 = getattr(head, "float8", None)
        if in_float8 is not None and isinstance(self.loss, LinearCrossEntropy):
            expected = "None, because LinearCrossEntropy multiplies in the compute dtype"
            fix = Fix(head, "float8", None)
            found.append(Problem("float8", in_float8, expected, fix, head))
        # Two samples, because BatchNorm refuses to train on a single value per feature.
        shape = (2, getattr(data, "sequence_length", 1))
        tokens_BL = torch.zeros(shape, dtype=torch.int64, device="meta")
        is_known = says_all_widths(model)
        if not is_known:
            found += shape_problems(model, tokens_BL)
        if not found and not (is_known and type(self.loss) in (CrossEntropy, LinearCrossEntropy)):
            problems = loss_problems(self.loss, model, tokens_BL)
            found += [replace(p, component=p.component or self) for p in problems]
        return found

    def data_problems(self, model: nn.Module, data: Any, /) -> list[Problem]:
        size, rows = data.tokenizer.vocab_size, getattr(model, "vocab_size", None)
        if rows is None or size <= rows:
            return []
        name = own_name(model.embedding, "vocab_size")
        fix = Fix(model.embedding, name, size)
        expected = f"at least the {size} ids of the tokenizer"
        return [Problem(name, rows, expected, fix, model.embedding)]

    def prepare(
        self,
        model: nn.Module,
        compiled: Callable[[Callable[..., Any]], Callable[..., Any]] | None,
        /,
    ) -> None:
        if compiled is not None and isinstance(self.loss, LinearCrossEntropy):
            self.loss.compile(compiled)
        head = getattr(model, "head", None)
        if head is not None and not getattr(self.loss, "splits_logits", False):
            head.register_forward_hook(lambda _, args, logits: _whole(logits))

    def losses(self, model: nn.Module, /) -> Sequence[str]:
        return ("loss",) if _multi_token(model) is None else ("loss", "multi_token_loss")

    def inputs(self, batch: TokenBatch, /) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        places = {"positions_BL": batch.positions_BL, "documents_BL": batch.documents_BL}
        return batch.tokens_BL, {name: x for name, x in places.items() if x is not None}

    def targets(self, batch: TokenBatch, /) -> dict[str, torch.Tensor]:
        documents = {} if batch.documents_BL is None else {"documents_BL": batch.documents_BL}
        return {"labels_BL": batch.labels_BL, **documents}

    def weight(self, batch: TokenBatch, /) -> torch.Tensor:
        return (batch.labels_BL != IGNORED).sum().to(torch.float32)

    def finish(
        self,
        head: nn.Module,
        hidden: torch.Tensor,
        /,
        *further: torch.Tensor,
        labels_BL: torch.Tensor,
        documents_BL: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of the next tokens, and of further ones if the model predicts some.

        The loss of further tokens is the mean over depths. Each depth has the weight of the next
        tokens, although it has fewer labels (DeepSeek-V3 Technical Report, 2024, equations 24 and
        25).
        """
        sums = [self.loss(head, hidden, labels_BL)]
        if further:
            ahead = [
                self.loss(head, x_BLD, labels_ahead(labels_BL, k, documents_BL))
                for k, x_BLD in enumerate(further, start=1)
            ]
            sums.append(functools.reduce(operator.add, ahead) / len(ahead))
        return torch.stack(sums)

    def objective(self, means: torch.Tensor, model: nn.Module, /) -> torch.Tensor:
        multi_token = _multi_token(model)
        return means[0] if multi_token is None else means[0] + multi_token.loss_weight * means[1]

    def evaluate(
        self,
        parallel: ParallelModel,
        data: PackedDataset,
        batches: Iterable[tuple[TokenBatch, float]],
        /,
    ) -> dict[str, float]:
        """Return `loss` (nats per token) and `bits_per_byte` (per byte of the text itself).

        Bits per byte compares models of different tokenizers: it divides the total loss by the
        number of bytes that the predicted tokens stand for. The end of a document stands for no
        byte.
        """
        bytes_of = torch.from_numpy(data.tokenizer.token_bytes().astype(np.int64))
        # The three sums are loss, tokens and bytes.
        total = torch.zeros(3, dtype=torch.float64, device=parallel.layout.world.device)
        for batch, counts in batches:
            sums = parallel.evaluate(self, batch)
            if parallel.has_loss and counts:
                labels = batch.labels_BL[batch.labels_BL != IGNORED].cpu()
                total[0] += sums[0].double()
                total[1] += labels.numel()
                total[2] += bytes_of[labels].sum().item()
        summed, tokens, text_bytes = parallel.sum(total).tolist()
        found = {"loss": summed / tokens} if tokens else {}
        if text_bytes:
            found["bits_per_byte"] = summed / math.log(2) / text_bytes
        return found

    def show(self, parallel: ParallelModel, data: PackedDataset, /) -> str | None:
        if self.sampler is None:
            return None
        model = cast(Decoder, parallel.model)
        text = self.sampler.run(model, data.tokenizer, shorten=True)
        return f"--- sample of {self.sampler.prompt!r}\n{text}\n---"


def labels_ahead(
    labels_BL: torch.Tensor, k: int, documents_BL: torch.Tensor | None = None
) -> torch.Tensor:
    """Return labels_BL that are the tokens k after the label of each position.

    A label is `IGNORED` if the sequence ends before it, or if the token k ahead belongs to another
    document than the position. The end of a document is learned from a position within it, as it is
    at k = 0.
    """
    ahead_BL = labels_BL.roll(-k, dims=1)
    ahead_BL[:, max(ahead_BL.shape[1] - k, 0) :] = IGNORED
    if documents_BL is not None:
        other_BL = documents_BL.roll(-k, dims=1) != documents_BL
        ahead_BL = ahead_BL.masked_fill(other_BL, IGNORED)
    return ahead_BL


def _takes_no_product(head: nn.Module, task: LanguageModeling) -> list[Problem]:
    """Return a problem if a head cannot be called with the product that the loss brings."""
    loss = type(task.loss).__name__
    if not any(uncallable("head", head, "x_BLD", "product")):
        return []
    expected = (
        f"a head for {loss} that is called with (x_BLD, product) and returns "
        "product(x_BLD, weight, bias)"
    )
    return [Problem("", ..., expected, Fix(task, "loss", CrossEntropy), head)]


def _whole(logits: Any) -> Any:
    """Gather logits that are split over tensor-parallel ranks."""
    return logits.full_tensor() if hasattr(logits, "full_tensor") else logits


def _multi_token(model: nn.Module) -> Any:
    return getattr(model, "multi_token", None)
