"""The experts: many feed-forward networks of one size, with stacked weights.

Shapes: B batch, L sequence, T = B L tokens, N experts of a token, R rows (a token once for each of
its experts), D dim, E experts, H hidden_dim; r rows of one expert.
"""

from collections.abc import Callable
from typing import Annotated, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from nanigpt import tags
from nanigpt.models.activation import GatedActivation, SwiGLU
from nanigpt.models.float8_recipe import ExpertRecipe, Product, check_recipe, unprepared
from nanigpt.models.init import Initializer
from nanigpt.models.moe.dispatch import Dispatcher, LocalDispatcher
from nanigpt.problems import Fix, refuse, require_choice, require_positive

Kernel = Literal["auto", "grouped", "loop"]
Weighs = Literal["outputs", "inputs"]
GroupedProduct = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns y_RH, given x_RD, weights `[experts, out, in]`, and the end of each expert's rows."""


def grouped_product(x_RD: torch.Tensor, w: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    """Compute the product in the dtype of x."""
    return F.grouped_mm(x_RD, w.transpose(-1, -2), offs=ends_E)


class Experts(nn.Module):
    """`w2(activation(w1(x), w3(x)))` for each expert of a token, weighted and summed.

    Args:
        n_experts: Number of experts.
        dim: Features of a token.
        hidden_dim: Hidden features of an expert.
        initializer: Initializer of `w1` and `w3`.
        output_initializer: Initializer of `w2`.
        bias: Initializer of all three biases, or None for no biases.
        activation: Activation of gates and values; None is `SwiGLU`.
        weighs: Whether weights multiply the outputs of experts, or their inputs (Llama 4).
        kernel: `grouped` is one grouped matrix product for all experts, and needs widths that are
            multiples of 8. `loop` is one product after the other, for which the host waits for each
            expert's number of rows. `auto` is `grouped` in bfloat16 on CUDA, where it is one
            kernel, if the widths allow it, and otherwise `loop`.
        float8: Recipe by which the products are computed in 8 bits, as in `Linear`. None computes
            them in the dtype of the inputs. Widths must be multiples of 16, or of 32 for `mxfp8`.

    Attributes:
        product: Product of one expert. If `float8` is set, `nanigpt.precision.float8` replaces it.
        grouped_product: Product of all experts, which it replaces too.
        dispatcher: Transport of tokens to experts, some of which may be on other ranks.
        sharers: Number of ranks among which hidden features are divided. Outputs are summed over
            them, so each rank adds its share of the output bias.
        local: Function that returns this rank's part of a weight.
    """

    tensor_parallel = {"": "experts"}

    def __init__(
        self,
        *,
        n_experts: int,
        dim: Annotated[int, tags.Width],
        hidden_dim: Annotated[int, tags.Width],
        initializer: Annotated[Initializer, tags.Initializer],
        output_initializer: Annotated[Initializer, tags.Initializer],
        bias: Annotated[Initializer | None, tags.BiasInitializer] = None,
        activation: GatedActivation | None = None,
        weighs: Weighs = "outputs",
        kernel: Annotated[Kernel, tags.ExpertKernel] = "auto",
        float8: Annotated[ExpertRecipe | None, tags.Float8] = None,
    ):
        super().__init__()
        require_positive(n_experts=n_experts, dim=dim, hidden_dim=hidden_dim)
        require_choice(get_args(Weighs), weighs=weighs)
        require_choice(get_args(Kernel), kernel=kernel)
        if kernel == "grouped" and (dim % 8 or hidden_dim % 8):
            expected = (
                f"another kernel with dim={dim}, hidden_dim={hidden_dim}, because 'grouped' needs "
                "multiples of 8"
            )
            fix = Fix(None, "kernel", "auto")
            refuse("kernel", kernel, expected, fix, given=("dim", "hidden_dim"))
        check_recipe(float8, get_args(ExpertRecipe), dim=dim, hidden_dim=hidden_dim)
        self.n_experts = n_experts
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.initializer = initializer
        self.output_initializer = output_initializer
        self.bias_initializer = bias
        self.activation = activation or SwiGLU()
        self.weighs = weighs
        self.kernel = kernel
        self.float8 = float8
        self.product: Product = F.linear
        self.grouped_product: GroupedProduct = grouped_product
        if float8 is not None:
            self.product = self.grouped_product = unprepared(float8)
        self.dispatcher: Dispatcher = LocalDispatcher()
        self.sharers = 1
        self.local: Callable[[torch.Tensor], torch.Tensor] = lambda weight: weight

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(n_experts, *shape, device="meta"))

        self.w1 = weight(hidden_dim, dim)
        self.w2 = weight(dim, hidden_dim)
        self.w3 = weight(hidden_dim, dim)
        self.bias1 = None if bias is None else weight(hidden_dim)
        self.bias2 = None if bias is None else weight(dim)
        self.bias3 = None if bias is None else weight(hidden_dim)

    def initializers(self) -> dict[str, Initializer | None]:
        """Return the initializer of each parameter."""
        return {
            "w1": self.initializer,
            "w3": self.initializer,
            "w2": self.output_initializer,
            **dict.fromkeys(("bias1", "bias2", "bias3"), self.bias_initializer),
        }

    def forward(
        self, x_BLD: torch.Tensor, weights_BLN: torch.Tensor, experts_BLN: torch.Tensor
    ) -> torch.Tensor:
        """Return out_BLD.

        Args:
            x_BLD: Tokens.
            weights_BLN: Weights of each token's experts (float32).
            experts_BLN: Indices of those experts.
        """
        x_TD, experts_TN = x_BLD.flatten(0, 1), experts_BLN.flatten(0, 1)
        weights_TN = weights_BLN.flatten(0, 1)
        if self.weighs == "inputs":  # each choice becomes a token of its own, with weight 1
            x_TND = x_TD.unsqueeze(1) * weights_TN.unsqueeze(-1)
            x_TD, experts_TN = x_TND.to(x_TD.dtype).flatten(0, 1), experts_TN.reshape(-1, 1)
            weights_TN = torch.ones_like(weights_TN).reshape(-1, 1)
        sent = self.dispatcher.dispatch(x_TD, experts_TN, self.n_experts)
        out_RD = self.compute(sent.x_RD, sent.rows_E)
        out_TD = self.dispatcher.combine(out_RD, weights_TN, sent.way_back)
        if self.weighs == "inputs":
            out_TD = out_TD.unflatten(0, (-1, experts_BLN.shape[-1])).sum(1)
        return out_TD.view_as(x_BLD)

    def compute(self, x_RD: torch.Tensor, rows_E: torch.Tensor) -> torch.Tensor:
        """Return out_RD, where one of the experts on this rank computes each row.

        Args:
            x_RD: The rows of the first expert, then those of the second, and so on.
            rows_E: Number of rows of each expert; their sum is R.
        """
        weights, biases = self._weights(x_RD.dtype)
        grouped = self.kernel == "grouped" or (self.kernel == "auto" and _is_one_kernel(weights[0]))
        return (self._grouped if grouped else self._loop)(x_RD, rows_E, weights, biases)

    def _weights(self, dtype: torch.dtype) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
        """Return this rank's part of w1, w2 and w3, and of bias1, bias2 and bias3."""

        def here(w: torch.Tensor) -> torch.Tensor:
            return self.local(w).to(dtype)

        weights = [here(w) for w in (self.w1, self.w2, self.w3)]
        b1, b2, b3 = (None if b is None else here(b) for b in (self.bias1, self.bias2, self.bias3))
        if self.sharers > 1 and b2 is not None:
            b2 = b2 / self.sharers
        return weights, [b1, b2, b3]

    def _loop(
        self,
        x_RD: torch.Tensor,
        rows_E: torch.Tensor,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor | None],
    ) -> torch.Tensor:
        if x_RD.is_meta:  # numbers of rows are unknown, and do not change shapes
            rows = [x_RD.shape[0], *[0] * (rows_E.shape[0] - 1)]
        else:
            rows = rows_E.tolist()
        for n in rows:
            # torch.compile knows nothing about these numbers. With the bounds of their size, it can
            # answer its own questions about them without waiting for the data. (torch 2.13 compiles
            # this without the two lines, too.)
            torch._check(n >= 0)
            torch._check(n <= x_RD.shape[0])
        none = [None] * len(rows)
        # The gradients of `split` and `unbind` are joined once. The gradient of each expert's slice
        # would be as large as the whole.
        each = [w.unbind() for w in weights]
        each_bias = [none if b is None else b.unbind() for b in biases]
        linear = self.product
        outs = [
            linear(self.activation(linear(x_rD, w1, b1), linear(x_rD, w3, b3)), w2, b2)
            for x_rD, w1, w2, w3, b1, b2, b3 in zip(
                x_RD.split(rows), *each, *each_bias, strict=True
            )
        ]
        return torch.cat(outs)

    def _grouped(
        self,
        x_RD: torch.Tensor,
        rows_E: torch.Tensor,
        weights: list[torch.Tensor],
        biases: list[torch.Tensor | None],
    ) -> torch.Tensor:
        (w1, w2, w3), (b1, b2, b3) = weights, biases
        ends_E = rows_E.cumsum(0, dtype=torch.int32)

        def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
            y = self.grouped_product(x, w, ends_E)
            if b is None:
                return y
            return y + b.repeat_interleave(rows_E, dim=0, output_size=x.shape[0])

        hidden_RH = self.activation(linear(x_RD, w1, b1), linear(x_RD, w3, b3))
        return linear(hidden_RH, w2, b2)

    def extra_repr(self) -> str:
        return (
            f"{self.n_experts} x ({self.dim} -> {self.hidden_dim} -> {self.dim}), "
            f"bias={self.bias_initializer is not None}, {self.activation!r}"
            + ("" if self.float8 is None else f", float8={self.float8}")
        )


def _is_one_kernel(weight: torch.Tensor) -> bool:
    """Return whether the grouped product is one kernel for this weight."""
    fits = all(size % 8 == 0 for size in weight.shape[1:])
    return weight.is_cuda and weight.dtype == torch.bfloat16 and fits
