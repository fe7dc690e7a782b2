"""Weights as integers with scales: the grids, rounding to the nearest, and with compensation.

A grid has a scale for each output channel, or for each block of terms of each output channel. All
arrays here are [K, N]: K terms, N output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

#: Fractions of the largest magnitude that the search for the best clipping tries.
_CLIPS = np.linspace(1.0, 0.7, 16, dtype=np.float32)
#: Columns after which errors are carried on to the rest (Frantar et al. 2022, section 3.3).
_LAZY_BATCH = 128
#: The largest float8 of four exponent and three mantissa bits.
_FLOAT8_MAX = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)


@dataclass(frozen=True)
class WeightGrid:
    """How weights are stored.

    Args:
        dtype: INT8, INT4 (symmetric), UINT4, UINT8 (with zero points) or FLOAT8E4M3FN.
        block: terms of a sum for each scale; None is all of them.
    """

    dtype: ir.DataType = ir.DataType.INT8
    block: int | None = None

    @property
    def has_zero_points(self) -> bool:
        """Whether the grid is asymmetric."""
        return self.dtype in (ir.DataType.UINT4, ir.DataType.UINT8)

    @property
    def is_integer(self) -> bool:
        """Whether values are stored as integers, not as float8."""
        return not self.dtype.is_floating_point()

    @property
    def levels(self) -> tuple[int, int]:
        """The least and the largest integer: int8 leaves -128 out, to be symmetric.

        Four bits use all of [-8, 7]: one of sixteen levels is too much to give away.
        """
        if self.dtype == ir.DataType.INT8:
            return -127, 127
        if self.dtype == ir.DataType.INT4:
            return -8, 7
        return 0, (1 << self.dtype.bitwidth) - 1


@dataclass(frozen=True)
class RoundedWeight:
    """A weight on its grid.

    Args:
        quantized: [K, N] of int8 or uint8 (four bits too: one value a byte), or of float8.
        scales: float32 [N], or [blocks, N].
        zeros: in the type of ``quantized`` and the shape of ``scales``; None where symmetric.
        grid: the grid.
        unseen: how many of these weights were rounded to the nearest although the others were
            rounded with compensation: calibration never saw their terms.
        learned: whether its rounding was learned, not compensated.
    """

    quantized: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    grid: WeightGrid
    unseen: int = 0
    learned: bool = False

    def dequantized(self) -> np.ndarray:
        """The weight that the runtime computes with: float32 [K, N]."""
        terms = self.quantized.shape[0]
        wide = self.quantized.astype(np.float32)
        if self.zeros is not None:
            wide -= _over_terms(self.zeros.astype(np.float32), self.grid.block, terms)
        return wide * _over_terms(self.scales, self.grid.block, terms)


def round_weight(weight: np.ndarray, grid: WeightGrid) -> RoundedWeight:
    """Round each weight [K, N], float32, to the nearest point of its grid."""
    scales, zeros = fit_grid(weight, grid)
    return RoundedWeight(on_grid(weight, scales, zeros, grid), scales, zeros, grid)


def fit_grid(
    weight: np.ndarray, grid: WeightGrid, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The scales (and zero points) of the grid of a weight [K, N].

    With four bits, a search tries ranges that clip the largest weights, and takes the one with the
    least squared error.

    Args:
        importance: [K], the weight of each term's squared error: the mean square of its activation.
            None is one for all.
    """
    blocks = _in_blocks(weight, grid.block)  # [B, block, N]
    least = np.minimum(blocks.min(axis=1), 0)
    most = np.maximum(blocks.max(axis=1), 0)
    if grid.dtype == ir.DataType.FLOAT8E4M3FN:
        scales = _no_zero(np.maximum(most, -least) / _FLOAT8_MAX)
        return _joined(scales, grid), None
    if grid.dtype.bitwidth > 4:
        scales, zeros = _affine(least, most, grid)
        return _joined(scales, grid), None if zeros is None else _joined(zeros, grid)
    weights = None
    if importance is not None:
        weights = _in_blocks(importance[:, None].astype(np.float32), grid.block)
    best: tuple[np.ndarray, np.ndarray | None] | None = None
    error = np.full(least.shape, np.inf, np.float32)
    for clip in _CLIPS:
        scales, zeros = _affine(least * clip, most * clip, grid)
        wide = _round_trip(blocks, scales, zeros, grid)
        squares = np.square(wide - blocks)
        found = (squares if weights is None else squares * weights).sum(axis=1)
        better = found < error
        error = np.where(better, found, error)
        if best is None:
            best = scales, zeros
        else:
            kept = None if zeros is None or best[1] is None else np.where(better, zeros, best[1])
            best = np.where(better, scales, best[0]), kept
    assert best is not None
    return _joined(best[0], grid), None if best[1] is None else _joined(best[1], grid)


def on_grid(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, grid: WeightGrid
) -> np.ndarray:
    """Each weight [K, N] as the nearest quantized value; halves to even, as in QuantizeLinear."""
    terms = weight.shape[0]
    scaled = weight / _over_terms(scales, grid.block, terms)
    if grid.dtype == ir.DataType.FLOAT8E4M3FN:
        return np.clip(scaled, -_FLOAT8_MAX, _FLOAT8_MAX).astype(ml_dtypes.float8_e4m3fn)
    np.rint(scaled, out=scaled)
    if zeros is not None:
        scaled += _over_terms(zeros.astype(np.float32), grid.block, terms)
    return np.clip(scaled, *grid.levels).astype(_array_type(grid))


def compensate(
    weight: np.ndarray, moments: np.ndarray, grid: WeightGrid, *, damping: float = 0.01
) -> RoundedWeight:
    """Round weights term by term; the terms not yet rounded compensate the error of each.

    This is GPTQ (Frantar et al. 2022, algorithm 1), with the terms of the largest activations first
    ("act order"). It minimizes the squared error of the *outputs*; `fit_grid` chooses the scales,
    with the activations' mean squares as importance.

    A term whose activation was zero in every sample has no error to compensate. Its weights are
    rounded to the nearest: another input may need them. (The paper's own code sets them to zero.)

    Args:
        weight: float32 [K, N].
        moments: [K, K], the sum over samples of x xᵀ for activations x.
        damping: added to the diagonal, relative to its mean.
    """
    terms = weight.shape[0]
    work = weight.astype(np.float32).copy()
    squares = np.diag(moments).astype(np.float64)
    unseen = squares <= 0
    mean = squares[~unseen].mean() if not unseen.all() else np.float64(1)
    # A term that was not seen counts little in the choice of scales, but it counts.
    importance = np.where(unseen, damping, squares.astype(np.float32) / mean)
    scales, zeros = fit_grid(work, grid, importance if importance.any() else None)
    hessian = moments.astype(np.float64)
    hessian[unseen, unseen] = mean
    order = np.argsort(-squares, kind="stable")
    by_scale = _over_terms(scales, grid.block, terms)[order] if grid.block else scales
    by_zero = None
    if zeros is not None:
        by_zero = _over_terms(zeros.astype(np.float32), grid.block, terms)
        by_zero = by_zero[order] if grid.block else by_zero
    hessian = hessian[np.ix_(order, order)]
    hessian[np.diag_indices(terms)] += damping * np.diag(hessian).mean()
    upper = _inverse_factor(hessian)
    work = work[order]
    quantized = np.empty((terms, weight.shape[1]), _array_type(grid))
    for start in range(0, terms, _LAZY_BATCH):
        stop = min(start + _LAZY_BATCH, terms)
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for row in range(start, stop):
            scale = by_scale[row] if grid.block else by_scale
            zero = None if by_zero is None else (by_zero[row] if grid.block else by_zero)
            rounded = np.rint(work[row] / scale) + (0 if zero is None else zero)
            rounded = np.clip(rounded, *grid.levels)
            quantized[row] = rounded.astype(quantized.dtype)
            wide = (rounded - (0 if zero is None else zero)) * scale
            error = (work[row] - wide) / upper[row, row]
            work[row + 1 : stop] -= np.outer(upper[row, row + 1 : stop], error)
            errors[row - start] = error
        work[stop:] -= upper[start:stop, stop:].T @ errors
    in_order = np.empty_like(quantized)
    in_order[order] = quantized
    return RoundedWeight(in_order, scales, zeros, grid, int(unseen.sum()) * weight.shape[1])


def _inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the inverse, float32."""
    inverse = np.linalg.inv(hessian)
    # The factor of the reversed matrix, reversed, is the upper one.
    return np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)


def _affine(
    least: np.ndarray, most: np.ndarray, grid: WeightGrid
) -> tuple[np.ndarray, np.ndarray | None]:
    low, high = grid.levels
    if not grid.has_zero_points:
        # The side with the larger magnitude takes the longer half of the levels, by its sign.
        if -low == high:
            return _no_zero(np.maximum(most, -least) / high), None
        scales = np.where(-least >= most, -least / -low, np.maximum(most / high, -least / -low))
        return _no_zero(scales), None
    scales = _no_zero((most - least) / (high - low))
    zeros = np.clip(np.rint(low - least / scales), low, high)
    return scales, zeros.astype(_array_type(grid))


def _round_trip(
    blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, grid: WeightGrid
) -> np.ndarray:
    rounded = np.rint(blocks / scales[:, None])
    shift = 0.0 if zeros is None else zeros[:, None].astype(np.float32)
    return (np.clip(rounded + shift, *grid.levels) - shift) * scales[:, None]


def _in_blocks(weight: np.ndarray, block: int | None) -> np.ndarray:
    """[K, N] as [blocks, block, N]; the last block is padded with zeros."""
    terms = weight.shape[0]
    size = block or terms
    if pad := -terms % size:
        weight = np.concatenate([weight, np.zeros((pad, weight.shape[1]), weight.dtype)])
    return weight.reshape(-1, size, weight.shape[1])


def _joined(per_block: np.ndarray, grid: WeightGrid) -> np.ndarray:
    return per_block if grid.block else per_block[0]


def _over_terms(per_block: np.ndarray, block: int | None, terms: int) -> np.ndarray:
    """Scales [N] or [blocks, N] so that they broadcast to [K, N]."""
    return per_block if block is None else np.repeat(per_block, block, axis=0)[:terms]


def _no_zero(scales: np.ndarray) -> np.ndarray:
    """Scales with one in place of zero, for weights that are all zero."""
    return np.where(scales > 0, scales, 1.0).astype(np.float32)


def _array_type(grid: WeightGrid) -> np.dtype:
    """The numpy type of quantized values: until written, four bits take a byte each."""
    return np.dtype(np.uint8 if grid.has_zero_points else np.int8)
