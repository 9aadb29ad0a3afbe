"""Loss on held-out text."""

import math
from typing import Annotated

import numpy as np
import torch

from nanigpt.data.corpus import VALIDATION
from nanigpt.data.dataset import IGNORED, PackedDataset
from nanigpt.models.decoder import Loss
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.tags import Unit


class Evaluation:
    """Validation loss over a fixed set of sequences, spread evenly over the validation split.

    Args:
        interval: steps between evaluations; the last step is always evaluated.
        n_sequences: how many sequences, or all there are where those are fewer.
        batch_size: sequences in one forward pass of one rank.
    """

    may_change_on_resume = True

    def __init__(
        self,
        *,
        interval: Annotated[int, Unit("steps")] = 1000,
        n_sequences: int = 1024,
        batch_size: Annotated[int, Unit("sequences")] = 8,
    ):
        if min(interval, n_sequences, batch_size) < 1:
            raise ValueError(
                f"interval={interval}, n_sequences={n_sequences}, batch_size={batch_size}: "
                "expected at least 1"
            )
        self.interval = interval
        self.n_sequences = n_sequences
        self.batch_size = batch_size

    def is_due(self, step: int, steps: int) -> bool:
        return step % self.interval == 0 or step == steps

    @torch.no_grad()
    def run(self, parallel: ParallelModel, loss: Loss, dataset: PackedDataset) -> dict[str, float]:
        """Returns `val_loss` (nats per token) and `val_bits_per_byte` (of the text itself).

        Bits per byte compares models of different tokenizers: the total loss over the bytes that
        the predicted tokens stand for; the end of a document stands for none.
        """
        available = dataset.n_sequences(VALIDATION)
        n = min(self.n_sequences, available)
        chosen = [i * available // n for i in range(n)]
        bytes_of = torch.from_numpy(dataset.tokenizer.token_bytes().astype(np.int64))
        model, layout = parallel.model, parallel.layout
        # Loss, tokens, bytes.
        total = torch.zeros(3, dtype=torch.float64, device=layout.world.device)
        was_training = model.training
        model.eval()
        # Every rank runs the same number of forward passes, since sharded parameters are gathered
        # by all together; a rank that has run out of sequences repeats one with nothing to predict.
        stride = self.batch_size * layout.data_size
        for start in range(0, n, stride):
            begin = start + layout.data_rank * self.batch_size
            whole = dataset.validation_batch(chosen[begin : begin + self.batch_size] or chosen[:1])
            if begin >= n:
                whole.labels_BL.fill_(IGNORED)
            batch = parallel.shard(whole)
            total[0] += parallel.evaluate(batch, loss).double()
            if parallel.has_loss:
                labels = batch.labels_BL[batch.labels_BL != IGNORED].cpu()
                total[1] += labels.numel()
                total[2] += bytes_of[labels].sum().item()
        model.train(was_training)
        summed, tokens, text_bytes = parallel.sum(total).tolist()
        return {
            "val_loss": summed / tokens,
            "val_bits_per_byte": summed / math.log(2) / text_bytes,
        }
