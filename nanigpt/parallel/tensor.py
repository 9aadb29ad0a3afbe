"""Tensor and sequence parallelism: matrices split over ranks.

Between modules activations are plain tensors; inside a module that is split they are DTensors. What
is split how, each module says itself: `tensor_parallel` maps its children, or "" for its own input,
to one of

    gather      the input is gathered along the sequence, once for all projections that read it
    column      a Linear of which each rank computes some outputs
    row         a Linear of which each rank reads some inputs; sums go back to the sequence's shards
    replicated  computed on every rank alike
    shared      computed on every rank alike, and read by its heads: gradients are summed
    each_head   computed on the rank's heads, weights on every rank: their gradients are summed
    heads       of its weights each rank has those of its heads
    sequence    computed on the sequence's shards, weights on every rank
    vocabulary  an Embedding of which each rank has some rows
    tokens      as sequence, of a router, whose results are plain tensors of the rank's tokens
    experts     inputs are gathered along the sequence, and sums go back to its shards; the weights
                are divided by `nanigpt.parallel.expert`
    logits      a head of which each rank has some outputs, which stay apart for the loss

(Shoeybi et al., 2019; sequence parallelism: Korthikanti et al., 2022.)

Shapes: B batch, L sequence, D dim; heads are dim 2 of x_BLHK.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nanigpt.models.float8 import multiple
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.parallel.mesh import Layout

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The argument of a module of which a rank has a part, by style.
_SPLIT_SIZE = {
    "column": "out_dim",
    "row": "in_dim",
    "vocabulary": "vocab_size",
    "logits": "out_dim",
}


class TensorParallel:
    """Splits matrices over the mesh axis `tp`.

    Args:
        sequence_parallel: between the matrices each rank has a part of the sequence, so that norms
            and residuals are not computed, nor kept, `tp` times. While sampling, where sequences
            are short and of any length, every rank has them whole, and all logits.
        loss_parallel: the loss is computed on the parts of the logits, which nobody gathers.
            `LinearCrossEntropy` never gathers them.
        asynchronous: matrix products overlap with the communication before and after them, piece by
            piece, where GPUs of a node see each other's memory. It is inductor that rewrites the
            two into one, so blocks must be compiled by it.
    """

    def __init__(
        self,
        *,
        sequence_parallel: bool = True,
        loss_parallel: bool = True,
        asynchronous: bool = False,
    ):
        if asynchronous and not sequence_parallel:
            raise ValueError(
                "asynchronous=True: expected sequence_parallel=True, which it overlaps"
            )
        self.sequence_parallel = sequence_parallel
        self.loss_parallel = loss_parallel
        self.asynchronous = asynchronous
        self._splitting = False

    def problems(self, model: nn.Module, n: int, *, sequence_length: int) -> list[str]:
        """What n ranks cannot divide."""
        found = [
            f"{w} is not divisible by mesh.tp={n}" for w in indivisible(_split_sizes(model), n)
        ]
        found += _float8_problems(model, n)
        if self.sequence_parallel and sequence_length % n:
            found.append(f"data.sequence_length={sequence_length} is not divisible by mesh.tp={n}")
        return found

    def apply(self, model: nn.Module, layout: Layout) -> None:
        """Splits `model`, still on meta, in place."""
        if layout.sizes["tp"] == 1:
            return
        mesh = layout.parameters["tp"]
        if self.asynchronous:
            _overlap(mesh)
        aliases = _aliases(model)
        for module in list(model.modules()):
            for child, style in getattr(module, "tensor_parallel", {}).items():
                target = getattr(module, child) if child else module
                if target is not None:
                    self._split(target, style, mesh)
        for module, name, owner, owned in aliases:  # a tied weight was split under one name
            module._parameters[name] = owner._parameters[owned]

    def loss_context(self, layout: Layout) -> Any:
        """Within it a loss may be computed on parts of logits, and its backward pass run."""
        if layout.sizes["tp"] == 1 or not self.loss_parallel:
            return contextlib.nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    @contextlib.contextmanager
    def splitting(self) -> Iterator[None]:
        """Within it sequences and logits are split without gradients too, as for evaluation."""
        self._splitting = True
        try:
            yield
        finally:
            self._splitting = False

    def parts(self, layout: Layout) -> int:
        """Ranks that a sequence is split over between modules now."""
        return layout.sizes["tp"] if self.sequence_parallel and self._splits() else 1

    def _splits(self) -> bool:
        return self._splitting or torch.is_grad_enabled()

    def _split(self, module: nn.Module, style: str, mesh: "DeviceMesh") -> None:
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        def wrap(x: torch.Tensor, placement: Any) -> DTensor:
            return DTensor.from_local(x, mesh, [placement], run_check=False)

        def place(y: DTensor, placement: Any) -> torch.Tensor:
            return y.redistribute(mesh, [placement]).to_local()

        def between() -> Any:
            """Where activations are between modules."""
            return Shard(1) if self.sequence_parallel and self._splits() else Replicate()

        def here(y: DTensor) -> torch.Tensor:
            return y.to_local()  # called as a method, or torch.compile does not know it

        def to_heads(y: DTensor) -> torch.Tensor:
            return y.to_local(grad_placements=[Partial()])

        def gathered(x: torch.Tensor) -> DTensor:
            return wrap(x, between()).redistribute(mesh, [Replicate()])

        def kept_apart(y: torch.Tensor) -> torch.Tensor:
            apart = self.loss_parallel and self._splits()
            if apart or not isinstance(y, DTensor):  # a loss was made where the logits would be
                return y
            return place(y, Replicate())

        def to_between(y: DTensor) -> torch.Tensor:
            return place(y, between())

        if style == "tokens":
            module.local = here
        if style == "experts":
            # Each rank has a part of every expert's features, and so finds a part of gradients.
            def whole(x: torch.Tensor) -> torch.Tensor:
                return gathered(x).to_local(grad_placements=[Partial()])

            module.register_forward_pre_hook(lambda _, args: tuple(map(whole, args)))
            module.register_forward_hook(lambda _, args, y: to_between(wrap(y, Partial())))
            return
        weight, before, after = {
            "gather": (Replicate(), gathered, None),
            "column": (Shard(0), None, here),
            "row": (Shard(1), lambda x: wrap(x, Shard(-1)), to_between),
            "replicated": (Replicate(), None, None),
            "shared": (Replicate(), None, to_heads),
            "each_head": (Replicate(), lambda x: wrap(x, Shard(2)), here),
            "heads": (Shard(0), None, here),
            "sequence": (Replicate(), lambda x: wrap(x, between()), here),
            "tokens": (Replicate(), lambda x: wrap(x, between()), None),
            "vocabulary": (Shard(0), lambda x: wrap(x, Replicate()), to_between),
            "logits": (Shard(0), gathered, kept_apart),
        }[style]
        _distribute(module, mesh, weight)
        if before is not None:
            module.register_forward_pre_hook(lambda _, args: (before(args[0]), *args[1:]))
        if after is not None:
            module.register_forward_hook(lambda _, args, output: after(output))


def _overlap(mesh: "DeviceMesh") -> None:
    """Has inductor fuse products with communication over symmetric memory."""
    import torch._inductor.config as inductor
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    inductor._micro_pipeline_tp = True
    enable_symm_mem_for_group(mesh.get_group().group_name)


def indivisible(sizes: Iterable[tuple[str, int]], n: int) -> list[str]:
    """Sizes that n does not divide; those that are alike in several layers are told once."""
    places: dict[tuple[str, int], list[str]] = {}
    for path, size in sizes:
        if size % n:
            places.setdefault((re.sub(r"\d+", "*", path), size), []).append(path)
    return [
        f"{paths[0]}={size}" + (f" (and {len(paths) - 1} others like it)" if paths[1:] else "")
        for (_, size), paths in places.items()
    ]


def head_counts(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Paths and numbers of heads."""
    for name, module in model.named_modules():
        for argument, size in getattr(module, "heads", dict)().items():
            yield path("model", name, argument), size


def _split_sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    yield from head_counts(model)
    for name, module in model.named_modules():
        if hasattr(module, "heads"):  # its projections are divisible where its heads are
            continue
        for child, style in getattr(module, "tensor_parallel", {}).items():
            if style in _SPLIT_SIZE:
                size = getattr(getattr(module, child), _SPLIT_SIZE[style])
                yield path("model", name, child, _SPLIT_SIZE[style]), size


def _float8_problems(model: nn.Module, n: int) -> Iterator[str]:
    """Parts of projections that have other sizes than their float8 recipe wants, or no recipe for
    parts."""
    if n == 1:
        return
    sizes: dict[int, list[tuple[str, int]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Experts) and module.float8 is not None:
            whole = path("model", name, "hidden_dim"), module.hidden_dim
            sizes.setdefault(multiple(module.float8), []).append(whole)
        for child, style in getattr(module, "tensor_parallel", {}).items():
            layer = getattr(module, child) if child else module
            if not isinstance(layer, Linear) or layer.float8 is None:
                continue
            if layer.float8 == "mxfp8":
                yield (
                    f"{path('model', name, child)}.float8='mxfp8' cannot be split over mesh.tp={n};"
                    " take another recipe, or set mesh.tp=1"
                )
                return
            argument = _SPLIT_SIZE.get(style)
            if argument is not None:
                whole = path("model", name, child, argument), getattr(layer, argument)
                sizes.setdefault(multiple(layer.float8), []).append(whole)
    for m, wholes in sizes.items():
        for what in indivisible(wholes, n * m):
            yield f"{what} is not divisible by mesh.tp={n} x {m}, which float8 wants of a part"


def path(*parts: str) -> str:
    """As in a config: `model.layers[0].attention`."""
    return re.sub(r"\.(\d+)\b", r"[\1]", ".".join(part for part in parts if part))


def _distribute(module: nn.Module, mesh: "DeviceMesh", placement: Any) -> None:
    """Makes DTensors of a module's own parameters; a bias is split where the outputs are."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for name, parameter in module._parameters.items():
        if parameter is not None:
            split = placement if parameter.ndim > 1 or placement == Shard(0) else Replicate()
            # On meta there is nothing to scatter.
            split_parameter = distribute_tensor(parameter, mesh, [split], src_data_rank=None)
            module._parameters[name] = nn.Parameter(split_parameter)


def _aliases(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module, str]]:
    """(module, name, owner, its name) of parameters that stand under a second name."""
    first: dict[nn.Parameter, tuple[nn.Module, str]] = {}
    found = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owner, owned = first.setdefault(parameter, (module, name))
                if (owner, owned) != (module, name):
                    found.append((module, name, owner, owned))
    return found
