"""A decoder that is spread over ranks, as training and evaluation see it."""

import functools
from collections.abc import Callable, Sequence

import torch

from nanigpt.data.dataset import Batch
from nanigpt.models.decoder import Decoder, Loss
from nanigpt.models.linear import Linear
from nanigpt.parallel.context import ContextParallel
from nanigpt.parallel.expert_load import settle_load
from nanigpt.parallel.gradients import clip_gradients, settle
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.tensor import TensorParallel
from nanigpt.precision.float8 import common_scales


class ParallelModel:
    """This rank's part of a decoder. All ranks call each method together.

    Attributes:
        model: the modules of this rank under the names of the whole decoder. Called with tokens and
            caches, as for sampling, it gives all logits to every rank.
        layout: this rank's place.
        n_experts: the most that any layer of the whole decoder has, or 0.
        float8: layers whose weights are gathered in float8.
        phase: told what comes next of a step, such as `forward`, for whoever times it.
    """

    def __init__(
        self,
        model: Decoder,
        layout: Layout,
        *,
        tensor: TensorParallel,
        context: ContextParallel,
        n_experts: int,
        float8: Sequence[Linear] = (),
    ):
        self.model = model
        self.layout = layout
        self.tensor = tensor
        self.context = context
        self.n_experts = n_experts
        self.float8 = float8
        self.phase: Callable[[str], None] = lambda phase: None

    def shard(self, batch: Batch) -> Batch:
        """What this rank computes of a batch, on its device."""
        columns = {name: x for name, x in vars(batch).items() if x is not None}
        if self.layout.sizes["cp"] > 1:
            here_L = self.context.positions(batch.tokens_BL.shape[1], self.layout)
            columns = {name: x[:, here_L] for name, x in columns.items()}
            columns["positions_BL"] = here_L.expand_as(columns["tokens_BL"])
        device = self.layout.world.device
        if device.type == "cuda":  # from other memory the host would wait for the copy
            columns = {name: x.pin_memory() for name, x in columns.items()}
        return Batch(**{name: x.to(device, non_blocking=True) for name, x in columns.items()})

    def forward_backward(self, batches: list[Batch], loss: Loss) -> dict[str, torch.Tensor]:
        """Adds the gradients of the losses of all ranks' batches; returns those losses.

        Args:
            batches: shards, computed one after the other.
            loss: divided by what the global mean is over, so that gradients are summed only.

        Returns:
            loss: of the next tokens.
            multi_token_loss: of further ones, if the model predicts them: the mean over depths,
                which is weighted in the gradients, but not here. Each depth is divided by what
                `loss` is, although it has fewer labels (DeepSeek-V3 Technical Report, 2024,
                equations 24 and 25).
        """
        names = ["loss"] if self.model.multi_token is None else ["loss", "multi_token_loss"]
        totals = torch.zeros(len(names), device=self.layout.world.device)
        with common_scales(self.float8):
            for i, batch in enumerate(batches):
                totals += self._forward_backward(batch, loss, last=i == len(batches) - 1)
        settle(self.parameters, self.layout, partial=self.partial_gradients)
        return dict(zip(names, self.sum(totals).unbind(), strict=True))

    @functools.cached_property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of this rank. A walk through all modules takes as long as several kernels of a step."""
        return list(self.model.parameters())

    @functools.cached_property
    def partial_gradients(self) -> list[torch.nn.Parameter]:
        """Parameters of which each rank of `tp` finds a part of the gradient."""
        if self.layout.sizes["tp"] == 1:
            return []
        return self.tensor.partial_gradients(self.model)

    @property
    def has_loss(self) -> bool:
        """Whether this rank computes losses, and not only what they need."""
        return True

    @torch.no_grad()
    def evaluate(self, batch: Batch, loss: Loss) -> torch.Tensor:
        """The loss of a shard, without gradients; zero on ranks that have none."""
        scales = common_scales(self.float8)
        with self.tensor.loss_context(self.layout), self.tensor.splitting(), scales:
            return self.model(
                batch.tokens_BL, **batch.places(), loss=loss, labels=[batch.labels_BL]
            )

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks that have losses of different tokens, in place."""
        return self.layout.sum(tensor)

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scales gradients down to a global 2-norm of `max_norm`; returns the norm they had."""
        return clip_gradients(self.parameters, max_norm, self.layout)

    def balance(self) -> dict[str, torch.Tensor]:
        """After an optimizer step: routers learn what load experts had in it, and it is told."""
        if not self.n_experts:
            return {}
        parts = self.tensor.parts(self.layout)
        return settle_load(self.model, self.layout, n_experts=self.n_experts, sequence_parts=parts)

    def _forward_backward(self, batch: Batch, loss: Loss, *, last: bool) -> torch.Tensor:
        if hasattr(self.model, "set_requires_gradient_sync"):  # sharded: gradients are summed once
            self.model.set_requires_gradient_sync(last)
        self.phase("forward")
        with self.tensor.loss_context(self.layout):
            depths = 0 if self.model.multi_token is None else len(self.model.multi_token.depths)
            labels = [batch.labels_ahead(k) for k in range(1 + depths)]
            main, *further = self.model(
                batch.tokens_BL, **batch.places(), ahead=True, loss=loss, labels=labels
            )
            self.phase("backward")
            if not further:
                main.backward()
                return main.detach()
            mean = sum(further) / len(further)
            (main + self.model.multi_token.loss_weight * mean).backward()
        return torch.stack([main, mean]).detach()
