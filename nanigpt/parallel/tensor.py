"""Tensor and sequence parallelism: matrices split over the mesh axis `tp`.

Between modules, activations are plain tensors. Inside a split module, they are DTensors. Each
module declares how it is split (`tensor_plan.py`), and `tensor_styles.py` splits it.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nanigpt.models.float8_recipe import multiple
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts
from nanigpt.models.parameters import Places
from nanigpt.parallel.mesh import Layout
from nanigpt.parallel.plan import Plan
from nanigpt.parallel.tensor_plan import Part, gaps, parts
from nanigpt.parallel.tensor_styles import Splitter
from nanigpt.problems import Fix, Problem, refuse

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# For each style: the split argument of a module, and the split dim of its weight.
_SPLIT_SIZE = {
    "column": ("out_dim", 0),
    "row": ("in_dim", 1),
    "vocabulary": ("vocab_size", 0),
    "logits": ("out_dim", 0),
}


class TensorParallel:
    """A policy that splits matrices over the mesh axis `tp`.

    Args:
        sequence_parallel: Give each rank a part of the sequence between the matrices, so that norms
            and residuals are neither computed nor kept `tp` times. In sampling, sequences are short
            and have any length. There every rank has whole sequences and all logits.
        loss_parallel: Compute the loss on the parts of the logits, without gathering them.
            `LinearCrossEntropy` never gathers them.
        asynchronous: Overlap matrix products with the communication before and after them, piece by
            piece, where GPUs of a node can access each other's memory. Inductor fuses products and
            communication, so it must compile the blocks.
    """

    axes = ("tp",)
    may_change_on_resume = True

    def __init__(
        self,
        *,
        sequence_parallel: bool = True,
        loss_parallel: bool = True,
        asynchronous: bool = False,
    ):
        if asynchronous and not sequence_parallel:
            refuse(
                "asynchronous",
                True,
                "False, or sequence_parallel=True: it overlaps the communication of sequences",
                Fix(None, "sequence_parallel", True),
            )
        self.sequence_parallel = sequence_parallel
        self.loss_parallel = loss_parallel
        self.asynchronous = asynchronous
        self._splitting = False

    def problems(self, model: nn.Module, plan: Plan, /) -> list[Problem]:
        """Return sizes that the ranks of `tp` cannot divide, and modules without a plan."""
        n = plan.sizes["tp"]
        if n == 1:
            return []
        found = [
            Problem("", ..., f"{gap.expected}, for tp={n}", Fix(plan.mesh, "tp", 1), gap.module)
            for gap in gaps(model)
        ]
        found += indivisible(_split_sizes(model), n, f"tp={n}")
        found += _float8_problems(model, n)
        length = plan.sequence_length
        # If context parallelism splits sequences too, it checks both splits.
        if self.sequence_parallel and plan.sizes["cp"] == 1 and length is not None and length % n:
            found.append(
                Problem("sequence_length", length, f"a multiple of tp={n}", component=plan.data)
            )
        return found

    def apply(self, model: nn.Module, layout: Layout, /) -> None:
        """Split `model`, still on meta, in place."""
        if layout.sizes["tp"] == 1:
            return
        mesh = layout.along("tp")
        if self.asynchronous:
            _overlap(mesh)
        splitter = Splitter(
            mesh,
            Places(model),
            splits_sequence=lambda: self.sequence_parallel and self._splits(),
            splits_logits=lambda: self.loss_parallel and self._splits(),
        )
        for part in parts(model):
            splitter.split(part)

    def partial_gradients(self, model: nn.Module) -> list[nn.Parameter]:
        """Return trained parameters for which each rank of `tp` computes a part of the gradient.

        They belong to `pointwise` modules, which get a part of the sequence in training.
        """
        if not self.sequence_parallel:
            return []
        modules = [part.module for part in parts(model) if part.style == "pointwise"]
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def loss_context(self, layout: Layout) -> Any:
        """Return a context that allows losses, and their gradients, on split logits."""
        if layout.sizes["tp"] == 1 or not self.loss_parallel:
            return contextlib.nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    @contextlib.contextmanager
    def splitting(self) -> Iterator[None]:
        """Split sequences and logits even without gradients, as evaluation requires."""
        self._splitting = True
        try:
            yield
        finally:
            self._splitting = False

    def parts(self, layout: Layout) -> int:
        """Return the number of ranks that now share a sequence between modules."""
        return layout.sizes["tp"] if self.sequence_parallel and self._splits() else 1

    def _splits(self) -> bool:
        return self._splitting or torch.is_grad_enabled()


def _overlap(mesh: "DeviceMesh") -> None:
    """Make inductor fuse products with communication over symmetric memory."""
    import torch._inductor.config as inductor
    from torch.distributed._symmetric_memory import enable_symm_mem_for_group

    inductor._micro_pipeline_tp = True
    enable_symm_mem_for_group(mesh.get_group().group_name)


Size = tuple[nn.Module, str, int]
"""A module, the name of one of its sizes, and the size."""


def indivisible(sizes: Iterable[Size], n: int, divisor: str) -> list[Problem]:
    """Return a problem for each size that n does not divide. `divisor` describes n."""
    return [
        Problem(argument, size, f"a multiple of {divisor}", component=module)
        for module, argument, size in sizes
        if size % n
    ]


def head_counts(model: nn.Module) -> Iterator[Size]:
    """Yield the numbers of heads of each attention module."""
    for module in model.modules():
        for argument, size in getattr(module, "heads", dict)().items():
            yield module, argument, size


def _split_sizes(model: nn.Module) -> Iterator[Size]:
    yield from head_counts(model)
    # If the heads of attention are divisible, its projections are divisible, too.
    attention = [f"{n}." for n, m in model.named_modules() if hasattr(m, "heads")]
    for part in parts(model):
        if part.style in _SPLIT_SIZE and not part.name.startswith(tuple(attention)):
            yield from _split_size(part)


def _split_size(part: Part) -> Iterator[Size]:
    argument, dim = _SPLIT_SIZE[part.style]
    size = getattr(part.module, argument, None)
    if isinstance(size, int):
        yield part.module, argument, size
        return
    for name, parameter in part.module._parameters.items():
        if parameter is not None and parameter.ndim > dim:
            yield part.module, f"{name}.shape[{dim}]", parameter.shape[dim]


def _float8_problems(model: nn.Module, n: int) -> Iterator[Problem]:
    """Yield problems of split projections whose sizes or recipe do not allow float8."""
    experts = [m for m in model.modules() if isinstance(m, Experts) and m.float8 is not None]
    sizes: list[tuple[int, Size]] = [
        (multiple(str(m.float8)), (m, "hidden_dim", m.hidden_dim)) for m in experts
    ]
    for part in parts(model):
        layer = part.module
        if not isinstance(layer, Linear) or layer.float8 is None:
            continue
        if layer.float8 == "mxfp8":
            yield Problem(
                "float8",
                "mxfp8",
                f"another recipe with tp={n}, which cannot split it",
                Fix(layer, "float8", "rowwise"),
                component=layer,
            )
        elif part.style in _SPLIT_SIZE:
            argument = _SPLIT_SIZE[part.style][0]
            sizes.append((multiple(layer.float8), (layer, argument, getattr(layer, argument))))
    for m, size in sizes:
        yield from indivisible(
            [size], n * m, f"tp={n} x {m}, because float8 needs multiples of {m}"
        )


def path(*parts: str) -> str:
    """Join names of modules as a config writes them: `model.layers[0].attention`."""
    return re.sub(r"\.(\d+)\b", r"[\1]", ".".join(part for part in parts if part))
