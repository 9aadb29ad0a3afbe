"""Weights that files have in few bits: which of their tensors make one, and how.

They are read, not written.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.huggingface.views import BlockScaled, Mxfp4, Transposed, View

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Quantization:
    """A weight NAME is the tensors `NAME{values}` and `NAME{scales}`; those without the second are
    as they are.

    Args:
        values: suffix of the one, and `scales` of the other.
        value_types: dtypes that the one may have, and `scale_types` the other.
        view: makes the weight of both; raises UsageError where their shapes do not fit.
    """

    values: str
    scales: str
    value_types: Sequence[str]
    scale_types: Sequence[str]
    view: Callable[[View, View], View]

    def weights(self, tensors: Collection[str]) -> set[str]:
        """Names of weights by those of tensors."""
        quantized = {n.removesuffix(self.scales) for n in tensors if n.endswith(self.scales)}
        quantized = {n for n in quantized if n + self.values in tensors}
        parts = {n + part for n in quantized for part in (self.values, self.scales)}
        return (set(tensors) - parts) | quantized


def quantization(told: dict[str, Any] | None) -> Quantization | None:
    """What `quantization_config` says, or None where weights are as they are.

    Raises:
        UsageError: it is not known here.
    """
    if told is None:
        return None
    if not isinstance(told, dict):
        raise UsageError(f"quantization_config={told!r}: expected an object")
    method = told.get("quant_method")
    if method == "mxfp4":
        return Quantization("_blocks", "_scales", ("U8",), ("U8",), _mxfp4)
    if method != "fp8":
        raise UsageError(
            f"quantization_config with quant_method={method!r}: expected mxfp4, fp8, or weights "
            "that are not quantised"
        )
    block, fmt = told.get("weight_block_size"), told.get("fmt", "e4m3")
    if fmt != "e4m3" or not _is_block(block):
        raise UsageError(
            f"quantization_config with fmt={fmt!r}, weight_block_size={block!r}: expected 'e4m3' "
            "and a block's rows and columns"
        )
    return Quantization(
        "", "_scale_inv", ("F8_E4M3",), FLOATS, lambda *parts: _block_scaled(*parts, block)
    )


def _is_block(block: Any) -> bool:
    sizes = block if isinstance(block, list) else []
    return len(sizes) == 2 and all(isinstance(n, int) and n > 0 for n in sizes)


def _mxfp4(blocks: View, scales: View) -> View:
    # Rows are what is multiplied with, where the tensor without quantisation has columns.
    return Transposed(Mxfp4(blocks, scales))


def _block_scaled(values: View, scales: View, block: list[int]) -> View:
    expected = [-(-n // size) for n, size in zip(values.shape, block, strict=False)]
    if len(values.shape) != 2 or list(scales.shape) != expected:
        raise UsageError(
            f"{list(values.shape)} with scales {list(scales.shape)}: expected a matrix, and one "
            f"scale for each block of {block}"
        )
    return BlockScaled(values, scales, tuple(block))
