"""How a target quantizes: which values, on which grid. Each target declares its own schemes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid

#: Weights in int8, one scale for each output channel, or for each row of a table.
PER_CHANNEL = WeightGrid(ir.DataType.INT8)


@dataclass(frozen=True)
class ActivationGrid:
    """How the activation of a linear layer is quantized, with one scale for all of it.

    Args:
        dtype: UINT8, INT8 or FLOAT8E4M3FN.
        symmetric: zero is the middle of the range.
        dynamic: the range is computed at run time.
    """

    dtype: ir.DataType
    symmetric: bool
    dynamic: bool = False


UNSIGNED = ActivationGrid(ir.DataType.UINT8, symmetric=False)
SIGNED = ActivationGrid(ir.DataType.INT8, symmetric=True)
DYNAMIC = ActivationGrid(ir.DataType.UINT8, symmetric=False, dynamic=True)


@dataclass(frozen=True)
class Scheme:
    """What is quantized in one precision of a target.

    Args:
        weights: of linear layers, by output channel or by groups of terms.
        activations: of linear layers; None leaves them in float.
        tables: rows of embeddings, one scale a row; None leaves them in float.
        least_terms: linear layers with fewer terms stay in float. The rounding error of so short a
            sum is large, and memory traffic takes its time.
        runtime_group: the group size with which the runtime itself quantizes activations to 8 bits,
            which the Graph does not show; None where the runtime quantizes nothing.
        finer: the scheme of layers that lose too much in this one; None is this one.
        by_token: whether a sensitive activation has each token scaled to one size
            (`NormalizeTokens`); else its layers take the finer scheme.
    """

    weights: WeightGrid
    activations: ActivationGrid | None = None
    tables: WeightGrid | None = PER_CHANNEL
    least_terms: int = 16
    runtime_group: int | None = None
    finer: Scheme | None = None
    by_token: bool = False

    @property
    def needs_ranges(self) -> bool:
        """Whether calibration must observe the range of each activation."""
        return self.activations is not None and not self.activations.dynamic

    def __str__(self) -> str:
        weights = f"{self.weights.dtype.name.lower()} weights"
        if self.weights.block:
            weights += f" in blocks of {self.weights.block}"
        if self.activations is None:
            return weights
        kind = "dynamic " if self.activations.dynamic else ""
        return f"{kind}{self.activations.dtype.name.lower()} activations, {weights}"


#: The scheme of a quantizing pass without a target: int8, by ranges from calibration.
INT8 = Scheme(PER_CHANNEL, UNSIGNED)


@dataclass(frozen=True)
class FourBits:
    """How four-bit weights are stored, where they differ from the target's scheme.

    Args:
        block: terms for each scale; None is the scheme's.
        symmetric: without zero points; None is the scheme's.
    """

    block: int | None = None
    symmetric: bool | None = None

    def apply(self, scheme: Scheme) -> Scheme:
        """A scheme of four bits with this group size and symmetry; other schemes unchanged."""
        grid = scheme.weights
        if grid.dtype.bitwidth > 4:
            return scheme
        dtype = grid.dtype
        if self.symmetric is not None:
            dtype = ir.DataType.INT4 if self.symmetric else ir.DataType.UINT4
        return replace(scheme, weights=WeightGrid(dtype, self.block or grid.block))
