"""Splitting of one module over ranks of tensor parallelism, by its style.

Shapes: B batch, L sequence, D dim; heads are dim 2 of x_BLHK.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nanigpt.models.parameters import Places
from nanigpt.parallel.tensor_plan import Part

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


Function = Callable[[Any], Any]

Style = tuple[Any, Function | None, Function | None]
"""The placement of weights, a function of the input, and a function of the output."""


class Splitter:
    """A splitter of modules, one by one, over the ranks of a mesh of one axis.

    Args:
        mesh: The mesh.
        places: All places of the model's parameters.
        splits_sequence: Function that returns whether each rank now has a part of the sequence
            between modules.
        splits_logits: Function that returns whether logits now stay split over ranks.
    """

    def __init__(
        self,
        mesh: "DeviceMesh",
        places: Places,
        *,
        splits_sequence: Callable[[], bool],
        splits_logits: Callable[[], bool],
    ):
        self.mesh = mesh
        self.places = places
        self.splits_sequence = splits_sequence
        self.splits_logits = splits_logits

    def split(self, part: Part) -> None:
        """Split one module in place: split its parameters, and add hooks to its forward pass."""
        if part.style in ("pointwise", "whole"):
            self._keep_whole(part)
            return
        weight, before, after = self._style(part.style)
        if part.style == "tokens":
            setattr(part.module, "local", _local)  # noqa: B010, for a router
        if weight is not None:
            self._distribute(part.module, weight)
        _add_hooks(part.module, before, after, every_input=part.style == "experts")

    def _style(self, style: str) -> Style:
        """Return the placement of weights, and the functions of the input and of the output."""
        from torch.distributed.tensor import Partial, Replicate, Shard

        table: dict[str, Style] = {
            "gather": (Replicate(), self._gathered, None),
            "column": (Shard(0), None, _local),
            "row": (Shard(1), lambda x: self._wrap(x, Shard(-1)), self._to_between),
            "replicated": (Replicate(), None, None),
            "shared": (Replicate(), None, lambda y: y.to_local(grad_placements=[Partial()])),
            "each_head": (Replicate(), lambda x: self._wrap(x, Shard(2)), _local),
            "heads": (Shard(0), None, _local),
            "sequence": (Replicate(), lambda x: self._wrap(x, self._between()), _local),
            "tokens": (Replicate(), lambda x: self._wrap(x, self._between()), None),
            "vocabulary": (Shard(0), lambda x: self._wrap(x, Replicate()), self._to_between),
            "logits": (Shard(0), self._gathered, self._kept_apart),
            # Each rank has a part of every expert's features, and so computes a part of gradients.
            "experts": (
                None,
                lambda x: self._gathered(x).to_local(grad_placements=[Partial()]),
                lambda y: self._to_between(self._wrap(y, Partial())),
            ),
        }
        return table[style]

    def _keep_whole(self, part: Part) -> None:
        """Give a plain module the sequence that it asks for. Its weights do not change."""
        if not part.name:  # the whole model; its batches are whole on every rank
            return

        # Tokens come in whole, and logits go out whole.
        comes_split = part.slot != "vocabulary"
        goes_split = part.slot != "logits"
        before: Function | None
        after: Function | None
        if part.style == "whole":
            before = self._where_split(self._whole) if comes_split else None
            after = self._where_split(self._part) if goes_split else None
        else:
            before = None if comes_split else self._where_split(self._part)
            after = None
        _add_hooks(part.module, before, after)

    def _where_split(self, function: Function) -> Function:
        """Return a function that does not change its argument if sequences are not split."""
        return lambda x: function(x) if self.splits_sequence() else x

    def _whole(self, x: torch.Tensor) -> torch.Tensor:
        """Gather the sequence. Every rank computes the same gradient, and keeps its part of it."""
        from torch.distributed.tensor import Replicate, Shard

        return self._wrap(x, Shard(1)).redistribute(self.mesh, [Replicate()]).to_local()

    def _part(self, y: torch.Tensor) -> torch.Tensor:
        """Take this rank's part of the sequence. The parts of the gradient are gathered."""
        from torch.distributed.tensor import Replicate, Shard

        return self._wrap(y, Replicate()).redistribute(self.mesh, [Shard(1)]).to_local()

    def _wrap(self, x: torch.Tensor, placement: Any) -> Any:
        from torch.distributed.tensor import DTensor

        return DTensor.from_local(x, self.mesh, [placement], run_check=False)

    def _between(self) -> Any:
        """Return the placement of activations between modules."""
        from torch.distributed.tensor import Replicate, Shard

        return Shard(1) if self.splits_sequence() else Replicate()

    def _gathered(self, x: torch.Tensor) -> Any:
        from torch.distributed.tensor import Replicate

        return self._wrap(x, self._between()).redistribute(self.mesh, [Replicate()])

    def _to_between(self, y: Any) -> torch.Tensor:
        return y.redistribute(self.mesh, [self._between()]).to_local()

    def _kept_apart(self, y: Any) -> Any:
        from torch.distributed.tensor import DTensor, Replicate

        if self.splits_logits() or not isinstance(y, DTensor):  # it is a loss
            return y
        return y.redistribute(self.mesh, [Replicate()]).to_local()

    def _distribute(self, module: nn.Module, placement: Any) -> None:
        """Make DTensors of a module's own parameters. A bias is split if the outputs are split."""
        from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

        for parameter in list(module._parameters.values()):
            if parameter is None or isinstance(parameter, DTensor):  # split under another name
                continue
            split = placement if parameter.ndim > 1 or placement == Shard(0) else Replicate()
            # On meta, there are no numbers to scatter.
            tensor = distribute_tensor(parameter, self.mesh, [split], src_data_rank=None)
            self.places.replace(parameter, tensor)


def _local(y: Any) -> torch.Tensor:
    return y.to_local()  # a method call, since torch.compile does not support the function


def _add_hooks(
    module: nn.Module,
    before: Function | None,
    after: Function | None,
    *,
    every_input: bool = False,
) -> None:
    if before is not None and every_input:
        module.register_forward_pre_hook(lambda _, args: tuple(map(before, args)))
    elif before is not None:
        module.register_forward_pre_hook(lambda _, args: (before(args[0]), *args[1:]))
    if after is not None:
        module.register_forward_hook(lambda _, args, output: after(output))
