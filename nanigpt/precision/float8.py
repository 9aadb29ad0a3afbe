"""Float8 training by torchao, with products in 8 bits and weights that FSDP gathers in 8 bits.

Master weights, gradients, optimizer state and checkpoints do not change, and modules keep their
class and names. torchao is imported only if a layer has a recipe.

Shapes: `[..., in]` inputs, `[out, in]` weights; D in, R rows, E experts.
"""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from nanigpt.errors import UsageError
from nanigpt.logs import import_torchao
from nanigpt.models.float8_recipe import Product, multiple, with_local
from nanigpt.models.linear import Linear
from nanigpt.models.moe.experts import Experts, GroupedProduct
from nanigpt.models.parameters import Places
from nanigpt.problems import Fix, Problem

# Float8 needs NVIDIA's Ada or Hopper. The grouped product needs Hopper. Scales for each 32 numbers
# need Blackwell.
_CAPABILITY = {"mxfp8": (10, 0), "experts": (9, 0)}
_LEAST = (8, 9)


class Float8:
    """The computation of layers that have a float8 recipe.

    Args:
        emulate: Round to float8, but multiply in float32. This is for tests, on any device.
        all_gather: Whether FSDP gathers weights of `tensorwise` layers in float8, with one scale
            for all shards. This needs half the bytes of bfloat16. If so, the float32 master weight
            is cast, also on one process. Otherwise the weight in the compute dtype is cast.
    """

    def __init__(self, *, emulate: bool = False, all_gather: bool = True):
        self.emulate = emulate
        self.all_gather = all_gather

    def device_problems(self, model: nn.Module, kind: str | None) -> list[Problem]:
        """Return a problem for each recipe that this kind of device, or this machine, cannot run.

        Args:
            model: The model.
            kind: Kind of the device, `cpu` or `cuda`; None stands for any device.
        """
        asked: dict[tuple[str, bool], nn.Module] = {}  # the first layer with each recipe
        for _, layer, recipe in _layers(model):
            asked.setdefault((recipe, isinstance(layer, Experts)), layer)
        if not asked:
            return []
        if importlib.util.find_spec("torchao") is None:
            command = "pip install 'nanigpt[float8]'"
            return [Problem("", ..., "torchao, which is not installed", command, self)]
        if self.emulate or kind is None:
            return []
        fix = Fix(self, "emulate", True)
        found = []
        for (recipe, experts), first in asked.items():
            least = max(
                _CAPABILITY.get(recipe, _LEAST), _CAPABILITY["experts"] if experts else _LEAST
            )
            if kind != "cuda":
                expected = f"a CUDA device, not {kind}"
            elif torch.cuda.is_available() and torch.cuda.get_device_capability() < least:
                expected = (
                    f"a GPU of compute capability {least[0]}.{least[1]} or higher, not "
                    f"{torch.cuda.get_device_name()}"
                )
            else:
                continue
            found.append(Problem("float8", recipe, expected, fix, first))
        return found

    def apply(self, model: nn.Module, *, shards: int = 1) -> list[Linear]:
        """Set the product of every layer that has a recipe, in place, after TP and before FSDP.

        Args:
            model: The model.
            shards: Number of ranks that FSDP shards over.

        Returns:
            The layers whose weights are gathered in float8. All ranks have equal numbers of rows of
            each weight.

        Raises:
            UsageError: torchao is missing.
        """
        products: dict[str, tuple[Product, Product]] = {}
        gathered: list[Linear] = []
        places = Places(model)
        for _, layer, recipe in _layers(model):
            if recipe not in products:  # all layers share the product, and so its compilation
                _require_torchao()
                import_torchao()
                products[recipe] = self._products(recipe)
            of_any, of_units = products[recipe]
            layer.product = of_any
            if isinstance(layer, Experts):
                layer.product = _with_zeros(of_units, multiple(recipe))
                layer.grouped_product = _grouped(recipe, layer.product, emulate=self.emulate)
            elif recipe == "tensorwise" and self.all_gather and shards > 1:
                rows = getattr(layer.weight, "_local_tensor", layer.weight).shape[0]
                if rows % shards == 0:
                    places.replace(
                        layer.weight, _gathered_in_float8(layer.weight, emulate=self.emulate)
                    )
                    gathered.append(layer)
        return gathered

    def _products(self, recipe: str) -> tuple[Product, Product]:
        """Return a product for any number of rows, and one for multiples of `multiple(recipe)`.

        The gradient of a weight is a product over rows, for which kernels need such a multiple.
        """
        n = multiple(recipe)
        if recipe == "mxfp8":
            of_units = _mxfp8(emulate=self.emulate)
            return _either(of_units, _with_zeros(of_units, n), n), of_units
        config, mm_config = _configs(recipe, emulate=self.emulate)
        casts_master = recipe == "tensorwise" and self.all_gather
        of_units = _float8(config, mm_config, casts_master=casts_master)
        if self.emulate:
            return of_units, of_units
        filled = mm_config._replace(grad_weight=mm_config.grad_weight._replace(pad_inner_dim=True))
        return _either(of_units, _float8(config, filled, casts_master=casts_master), n), of_units


@contextlib.contextmanager
def common_scales(layers: Sequence[Linear]) -> Iterator[None]:
    """Compute the scales of all weights at once, and use them when weights are gathered inside.

    Weights must not change inside of this context. Outside of it, each weight computes its scale
    when it is gathered.

    Args:
        layers: The layers that `Float8.apply` returned, which are the same on all ranks.
    """
    # A weight that is still gathered after the last use has its scale already. Shards in the host's
    # memory are copied for each use, without the scales that are set here.
    weights: list[DTensor] = []
    for layer in layers:
        weight: torch.Tensor = layer.weight
        if not isinstance(weight, DTensor) or not hasattr(_shard(weight), "fsdp_pre_all_gather"):
            continue
        if _shard(weight).device.type == weight.device_mesh.device_type:
            weights.append(weight)
    if weights:
        _set_scales(weights)
    try:
        yield
    finally:
        for weight in weights:
            _shard(weight)._precomputed_scale = None


@torch.no_grad()
def _set_scales(weights: list[DTensor]) -> None:
    from torch import distributed as dist
    from torchao.float8.float8_utils import amax_to_scale

    shards = [_shard(weight)._tensor for weight in weights]
    largest = torch.stack(torch._foreach_norm(shards, ord=math.inf))
    mesh = weights[0].device_mesh
    for axis in range(mesh.ndim):
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=mesh.get_group(axis))
    scales = amax_to_scale(largest, _shard(weights[0])._dtype)
    for weight, scale in zip(weights, scales.unbind(), strict=True):
        _shard(weight)._precomputed_scale = scale


def _shard(weight: DTensor) -> Any:
    """Return this rank's part of a weight: torchao's wrapper, which has its own attributes."""
    return weight._local_tensor


def _layers(model: nn.Module) -> Iterator[tuple[str, Linear | Experts, str]]:
    """Yield name, module and recipe of every layer that has a recipe."""
    for name, module in model.named_modules():
        if isinstance(module, Linear | Experts) and module.float8 is not None:
            yield name, module, module.float8


def _require_torchao() -> None:
    if importlib.util.find_spec("torchao") is None:
        raise UsageError(
            "float8 training needs torchao, which is not installed: "
            "pip install 'nanigpt[float8]', or train without float8"
        )


def _configs(recipe: str, *, emulate: bool) -> tuple[Any, Any]:
    """Return the configs of torchao for casts and for the three products."""
    from torchao.float8.config import Float8LinearConfig
    from torchao.float8.float8_training_tensor import LinearMMConfig, ScaledMMConfig

    config = Float8LinearConfig.from_recipe_name(recipe)
    products = (
        config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight
    )  # fmt: skip
    return config, LinearMMConfig(
        *(ScaledMMConfig(emulate=emulate, use_fast_accum=p.use_fast_accum) for p in products)
    )


def _gathered_in_float8(weight: nn.Parameter, *, emulate: bool) -> torch.Tensor:
    """Return a weight, still on meta, whose shards are cast before FSDP gathers them."""
    from torchao.float8.fsdp_utils import WeightWithDynamicFloat8CastTensor

    config, mm_config = _configs("tensorwise", emulate=emulate)
    local = getattr(weight.detach(), "_local_tensor", weight.detach())
    cast = WeightWithDynamicFloat8CastTensor(
        local, mm_config, config.cast_config_weight.target_dtype
    )
    return with_local(weight.detach(), cast)


def _float8(config: Any, mm_config: Any, *, casts_master: bool) -> Product:
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args as matmul

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight = weight if casts_master else weight.to(x.dtype)
        y = matmul.apply(x, weight.t(), mm_config, config)
        return y if bias is None else y + bias

    return product


def _mxfp8(*, emulate: bool) -> Product:
    matmul = partial(
        _prototype("_to_mxfp8_then_scaled_mm", "mxfp8_linear"), **_mx_options(emulate=emulate)
    )

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        y = matmul(x, weight.to(x.dtype))
        return y if bias is None else y + bias

    return product


def _either(of_units: Product, of_others: Product, n: int) -> Product:
    """Return a product that calls `of_units` if x has a multiple of n rows on this rank."""

    def product(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        local = x.to_local() if isinstance(x, DTensor) else x
        rows = local.numel() // local.shape[-1]
        return (of_others if rows % n else of_units)(x, weight, bias)

    return product


def _with_zeros(product: Product, n: int) -> Product:
    """Return a product that appends rows of zeros to x, up to a multiple of n.

    It always appends at least one row, so that no scale is computed from zero rows.
    """

    def with_zeros(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        x_RD = x.reshape(-1, x.shape[-1])
        missing = n + -x_RD.shape[0] % n  # does not wait for the device
        y = product(F.pad(x_RD, (0, 0, 0, missing)), weight, bias)
        return y[: x_RD.shape[0]].reshape(*x.shape[:-1], y.shape[-1])

    return with_zeros


def _grouped(recipe: str, product: Product, *, emulate: bool) -> GroupedProduct:
    """Return the product of all experts, each with its own scales."""
    if emulate:
        return _one_by_one(product)
    options: dict[str, Any] = {"pad_token_groups_for_grouped_mm": False}
    if recipe == "mxfp8":
        matmul = _prototype("_to_mxfp8_then_scaled_grouped_mm", "mxfp8_grouped_mm")
        options |= _mx_options(emulate=False)
    else:
        matmul = _prototype("_to_fp8_rowwise_then_scaled_grouped_mm", "fp8_grouped_mm")
    return in_whole_units(partial(matmul, out_dtype=torch.bfloat16, **options), multiple(recipe))


def _one_by_one(product: Product) -> GroupedProduct:
    def grouped(x_RD: torch.Tensor, w: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        rows = ends_E.diff(prepend=ends_E.new_zeros(1)).tolist()
        return torch.cat([product(x, w, None) for x, w in zip(x_RD.split(rows), w, strict=True)])

    return grouped


def in_whole_units(matmul: Callable[..., torch.Tensor], n: int) -> GroupedProduct:
    """Return a grouped product for any numbers of rows, given one for multiples of n.

    It inserts zeros after each expert's rows.

    Args:
        matmul: Grouped product of rows and weights `[experts, in, out]`; `offs` is the end of each
            expert's rows. It may leave any numbers in rows after the last end.
        n: Number that divides each expert's rows.
    """

    def grouped(x_RD: torch.Tensor, w: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        n_rows = x_RD.shape[0]
        rows_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        units_E = (rows_E + n - 1) // n * n
        shift_E = (units_E.cumsum(0) - units_E) - (ends_E - rows_E)
        here_R = torch.arange(n_rows, device=x_RD.device)
        here_R = here_R + shift_E.repeat_interleave(rows_E, output_size=n_rows)
        # Room for the largest possible number of rows, since the host does not know the number.
        room = -(-n_rows // n) * n + n * w.shape[0]
        wide_RD = x_RD.new_zeros(room, x_RD.shape[1]).index_copy(0, here_R, x_RD)
        y = matmul(wide_RD, w.transpose(-1, -2), offs=units_E.cumsum(0, dtype=torch.int32))
        return y[here_R].to(x_RD.dtype)

    return grouped


def _mx_options(*, emulate: bool) -> dict[str, Any]:
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.quantization.quantize_.common import KernelPreference

    preference = KernelPreference.EMULATED if emulate else KernelPreference.AUTO
    return {"kernel_preference": preference, "scale_calculation_mode": ScaleCalculationMode.RCEIL}


def _prototype(name: str, module: str) -> Any:
    """Import a function that only newer versions of torchao have."""
    try:
        return getattr(importlib.import_module(f"torchao.prototype.moe_training.{module}"), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"float8: this version of torchao has no {module}.{name}; expected 0.18 or newer"
        ) from error
