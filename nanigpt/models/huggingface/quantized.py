"""Weights that files store in a few bits: their tensors, and views that combine the tensors.

nanigpt can read such weights but not write them.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from nanigpt.errors import UsageError
from nanigpt.models.huggingface.views import BlockScaled, Mxfp4, Transposed, View

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Quantization:
    """A weight NAME is stored as two tensors, `NAME{values}` and `NAME{scales}`.

    A weight that has no tensor of scales is not quantized.

    Args:
        values: Suffix of the tensor of values.
        scales: Suffix of the tensor of scales.
        value_types: Dtypes that the values may have.
        scale_types: Dtypes that the scales may have.
        view: Function that combines both into the weight. It raises UsageError if their shapes do
            not fit.
    """

    values: str
    scales: str
    value_types: Sequence[str]
    scale_types: Sequence[str]
    view: Callable[[View, View], View]

    def weights(self, tensors: Collection[str]) -> set[str]:
        """Return the names of weights, given the names of tensors."""
        quantized = {n.removesuffix(self.scales) for n in tensors if n.endswith(self.scales)}
        quantized = {n for n in quantized if n + self.values in tensors}
        parts = {n + part for n in quantized for part in (self.values, self.scales)}
        return (set(tensors) - parts) | quantized


def quantization(config: dict[str, Any] | None) -> Quantization | None:
    """Return the quantization that `quantization_config` describes, or None if there is none.

    Raises:
        UsageError: nanigpt cannot read this quantization.
    """
    if config is None:
        return None
    if not isinstance(config, dict):
        raise UsageError(f"quantization_config={config!r}: expected an object")
    method = config.get("quant_method")
    if method == "mxfp4":
        return Quantization("_blocks", "_scales", ("U8",), ("U8",), _mxfp4)
    if method != "fp8":
        raise UsageError(
            f"quantization_config with quant_method={method!r}: expected mxfp4, fp8, or weights "
            "that are not quantised"
        )
    block: Any = config.get("weight_block_size")
    fmt = config.get("fmt", "e4m3")
    if fmt != "e4m3" or not _is_block(block):
        raise UsageError(
            f"quantization_config with fmt={fmt!r}, weight_block_size={block!r}: expected 'e4m3' "
            "and a block's rows and columns"
        )
    return Quantization(
        "",
        "_scale_inv",
        ("F8_E4M3",),
        FLOATS,
        lambda values, scales: _block_scaled(values, scales, block),
    )


def _is_block(block: Any) -> bool:
    sizes = block if isinstance(block, list) else []
    return len(sizes) == 2 and all(isinstance(n, int) and n > 0 for n in sizes)


def _mxfp4(blocks: View, scales: View) -> View:
    # Inputs are along the rows here, and along the columns of the tensor without quantization.
    return Transposed(Mxfp4(blocks, scales))


def _block_scaled(values: View, scales: View, block: Sequence[int]) -> View:
    expected = [-(-n // size) for n, size in zip(values.shape, block, strict=False)]
    if len(values.shape) != 2 or list(scales.shape) != expected:
        raise UsageError(
            f"{list(values.shape)} with scales {list(scales.shape)}: expected a matrix, and one "
            f"scale for each block of {block}"
        )
    rows, columns = block
    return BlockScaled(values, scales, (rows, columns))
