"""Define tasks that a model is trained to do.

The trainer knows no tokens. It asks a `Task` for everything that depends on the kind of model:

    weight      weight of a batch, known before the first forward pass
    inputs      the arguments of the model's forward pass
    targets     the tensors to compare its outputs with
    finish      the sums of losses, from the model's head and hidden states
    objective   the scalar to differentiate, from the mean losses
    evaluate    named numbers on held-out samples
    show        a sample to look at after training

Why the model calls `finish`
----------------------------

A model's forward is `forward(first, *, finish=None, targets={}, **places)`. Without `finish` it
returns its outputs. With it, the model ends with `return finish(head, hidden, *further, **targets)`
and leaves the head to `finish`. Three things force the loss into the forward pass:

* FSDP gathers the weight of the head for the forward pass of the root module and frees it
  afterwards. A loss that never holds all logits needs the weight, not the logits.
* Only the last stage of a pipeline has the head and the hidden states, and the schedule splits its
  arguments into microbatches: `targets` have the batch as dim 0, and are split with the inputs.
* torch.compile of the whole model fuses the loss with the head only if both are in one graph.

`finish` returns sums, not means: sums over microbatches and ranks add up. The trainer divides them
by the weight of the global batch, which it knows before the first forward pass. Gradients are
therefore summed over microbatches and ranks and never averaged. A global batch of weight 0 is
divided by 1: its sums are 0, and so are its gradients.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from nanigpt.parallel.objective import Objective, SomeBatch
from nanigpt.parallel.parallel_model import ParallelModel
from nanigpt.problems import Problem


class Task(Objective[SomeBatch], Protocol[SomeBatch]):
    """A kind of training. A subclass inherits defaults for all but `inputs`, `weight`, `finish`."""

    def problems(self, model: nn.Module, data: Any, /) -> list[Problem]:
        """Return why model and data do not fit this task or each other; read no file."""
        return []

    def data_problems(self, model: nn.Module, data: Any, /) -> list[Problem]:
        """Return why data do not fit the model; may read small files, such as a tokenizer's."""
        return []

    def prepare(self, model: nn.Module, compiled: Any, /) -> None:
        """Get ready to train `model`.

        Args:
            compiled: compiles a function of the loss, or None if the loss runs eagerly or is
                part of a compiled model.
        """

    def losses(self, model: nn.Module, /) -> Sequence[str]:
        """Return the names of the sums that `finish` returns in training, for the metrics."""
        return ("loss",)

    def inputs(self, batch: SomeBatch, /) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the forward pass's first argument and its named arguments.

        The first pipeline stage gets the first argument, every stage gets the named ones. All have
        the batch as dim 0.
        """
        ...

    def targets(self, batch: SomeBatch, /) -> dict[str, torch.Tensor]:
        """Return the named arguments of `finish`. All have the batch as dim 0."""
        return {}

    def weight(self, batch: SomeBatch, /) -> torch.Tensor:
        """Return the weight of a batch in means, a float32 scalar: its number of labels."""
        ...

    def finish(
        self, head: nn.Module, hidden: torch.Tensor, /, *further: Any, **targets: Any
    ) -> torch.Tensor:
        """Return a float32 vector of sums of losses over the batch, one for each of `losses`.

        Args:
            head: the model's last module, not yet called.
            hidden: the head's input.
            further: other inputs of the head, if the model makes several.
        """
        ...

    def objective(self, means: torch.Tensor, model: nn.Module, /) -> torch.Tensor:
        """Return the scalar to differentiate.

        Args:
            means: The sums of `finish`, divided by the weight of the global batch. The objective
                must be linear in them, because it is differentiated for each microbatch.
        """
        return means.sum()

    def evaluate(
        self, parallel: ParallelModel, data: Any, batches: Iterable[tuple[SomeBatch, float]], /
    ) -> dict[str, float]:
        """Return named numbers; by default the means of `losses`.

        All ranks call this together, with equally many batches.

        Args:
            batches: this rank's shards, each with 1.0, or with 0.0 if the rank computes it only to
                keep in step with the others. The model is in evaluation mode, without gradients.
        """
        names = list(self.losses(parallel.model))
        device = parallel.layout.world.device
        total = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
        for batch, counts in batches:
            sums = parallel.evaluate(self, batch)
            if parallel.has_loss:
                total += counts * torch.cat([sums, self.weight(batch)[None]]).double()
        *means, weight = parallel.sum(total).tolist()
        return {n: x / weight for n, x in zip(names, means, strict=True)} if weight else {}

    def show(self, parallel: ParallelModel, data: Any, /) -> str | None:
        """Return a sample of the model's output, to print after training. All ranks call it."""
        return None
