"""What each target's kernels want quantized, and how: a table by target, device and precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from omnigraph.errors import UnsupportedError
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid

#: Precisions that are integers or float8: those that `InsertQdq` makes.
QUANTIZED = ("int8", "int8-dynamic", "int8-weights", "int4-weights", "fp8")

_PER_CHANNEL = WeightGrid(ir.DataType.INT8)


@dataclass(frozen=True)
class ActivationGrid:
    """How an activation is stored on its way into a product, one scale for all of it.

    Args:
        dtype: UINT8, INT8 or FLOAT8E4M3FN.
        symmetric: zero is the middle of the range.
        dynamic: the range is taken at run time.
    """

    dtype: ir.DataType
    symmetric: bool
    dynamic: bool = False


@dataclass(frozen=True)
class Scheme:
    """What is quantized for one target, device and precision.

    Args:
        weights: of products, by output channel or by blocks.
        activations: what products multiply; None leaves them in float.
        tables: rows of embeddings, one scale a row; None leaves them in float.
        least_terms: products with fewer terms stay in float: their rounding is a large part of so
            short a sum, and their time is in the memory traffic.
        runtime_group: the runtime quantizes activations by itself, to 8 bits in groups of so many
            terms, which the Graph does not show; None where it does not.
    """

    weights: WeightGrid
    activations: ActivationGrid | None = None
    tables: WeightGrid | None = _PER_CHANNEL
    least_terms: int = 16
    runtime_group: int | None = None


_UNSIGNED = ActivationGrid(ir.DataType.UINT8, symmetric=False)
_SIGNED = ActivationGrid(ir.DataType.INT8, symmetric=True)
_DYNAMIC = ActivationGrid(ir.DataType.UINT8, symmetric=False, dynamic=True)

#: By target, device and precision.
SCHEMES: Mapping[tuple[str, str, str], Scheme] = {
    ("onnx", "cpu", "int8"): Scheme(_PER_CHANNEL, _UNSIGNED),
    ("onnx", "cpu", "int8-dynamic"): Scheme(_PER_CHANNEL, _DYNAMIC),
    # MatMulNBits multiplies integers: it quantizes activations by the blocks of the weights.
    ("onnx", "cpu", "int8-weights"): Scheme(_PER_CHANNEL, runtime_group=128),
    ("onnx", "cpu", "int4-weights"): Scheme(WeightGrid(ir.DataType.UINT4, 64), runtime_group=64),
    ("openvino", "cpu", "int8"): Scheme(_PER_CHANNEL, _UNSIGNED),
    # OpenVINO quantizes activations at run time by itself, where weights alone are integers: its
    # session says in which groups. Without it, weights that are widened cost more than bf16.
    ("openvino", "cpu", "int8-dynamic"): Scheme(_PER_CHANNEL, runtime_group=128),
    ("openvino", "cpu", "int8-weights"): Scheme(_PER_CHANNEL, runtime_group=32),
    ("openvino", "cpu", "int4-weights"): Scheme(
        WeightGrid(ir.DataType.UINT4, 64), runtime_group=32
    ),
    ("tensorrt", "cuda", "int8"): Scheme(_PER_CHANNEL, _SIGNED),
    ("tensorrt", "cuda", "int8-weights"): Scheme(_PER_CHANNEL),
    ("tensorrt", "cuda", "int4-weights"): Scheme(WeightGrid(ir.DataType.INT4, 64)),
    ("tensorrt", "cuda", "fp8"): Scheme(
        WeightGrid(ir.DataType.FLOAT8E4M3FN),
        ActivationGrid(ir.DataType.FLOAT8E4M3FN, symmetric=True),
        # A table of integers could not be multiplied with float8, where logits share it.
        tables=None,
    ),
}


@dataclass(frozen=True)
class FourBits:
    """How weights of four bits are stored, where that is not as the table of schemes has it.

    Args:
        block: terms that share a scale; None is the table's.
        symmetric: without zero points; None is the table's.
    """

    block: int | None = None
    symmetric: bool | None = None

    def apply(self, scheme: Scheme) -> Scheme:
        """The scheme with these instead."""
        grid = scheme.weights
        if grid.dtype.bitwidth > 4:
            return scheme
        dtype = grid.dtype
        if self.symmetric is not None:
            dtype = ir.DataType.INT4 if self.symmetric else ir.DataType.UINT4
        return replace(scheme, weights=WeightGrid(dtype, self.block or grid.block))


def scheme_of(target: str, device: str, precision: str) -> Scheme:
    """The scheme of a target on a device.

    Raises:
        UnsupportedError: there is none; the error names those there are.
    """
    if (found := SCHEMES.get((target, device, precision))) is None:
        known = [p for t, d, p in SCHEMES if (t, d) == (target, device)]
        raise UnsupportedError(
            f"Nothing is known of precision {precision!r} on target {target!r}, device {device!r}",
            expected=" or ".join(known) or "a target and device that have quantized kernels",
            hint="fp32, fp16 and bf16 need no quantization",
        )
    return found
