"""The range in which an activation is quantized, from a histogram of its values.

Every function takes counts [bins] of equal bins from ``least`` to ``greatest``, and gives the two
ends of a range that contains zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

#: Steps between the 256 quantized values of eight bits.
_LEVELS = 255
#: The fraction of elements that is clipped at either end, at most.
_TAIL = 1e-4
#: Quantized values for magnitudes in eight bits (Migacz 2017).
_MAGNITUDES = 128
#: Fractions of the whole range that are tried.
_FRACTIONS = np.concatenate([[1.0], np.geomspace(0.98, 0.02, 80)])


def percentile(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """All but the outermost 1 of 10,000 elements at either end."""
    edges = np.linspace(least, greatest, len(counts) + 1)
    below = np.cumsum(counts) / counts.sum()
    low = edges[np.searchsorted(below, _TAIL, side="right")]
    high = edges[np.searchsorted(below, 1 - _TAIL) + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def mse(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """The range with the least squared error of rounding and clipping to 256 quantized values.

    Each end is searched in turn, so that outliers of one side are clipped without the other
    (Banner et al. 2019, section 3, found here by search).
    """
    edges = np.linspace(least, greatest, len(counts) + 1)
    centers, weights = (edges[1:] + edges[:-1]) / 2, counts.astype(np.float64)
    full = min(least, 0.0), max(greatest, 0.0)

    def error(low: float, high: float) -> float:
        scale = (high - low) / _LEVELS or 1.0
        # Within the range, rounding has the error of one step; outside, clipping has the distance.
        outside = np.maximum(centers - high, 0) + np.maximum(low - centers, 0)
        inside = np.where(outside > 0, 0.0, scale**2 / 12)
        return float(weights @ (inside + np.square(outside)))

    low, high = full
    for _ in range(2):
        high = min((full[1] * part for part in _FRACTIONS), key=lambda end: error(low, end))
        low = min((full[0] * part for part in _FRACTIONS), key=lambda end: error(end, high))
    return low, high


def entropy(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """The range of magnitudes that loses the least information (Migacz 2017, "8-bit inference").

    For each range, two distributions are compared by their Kullback-Leibler divergence: that of
    the magnitudes, clipped ones in the last bin, and the same quantized to 128 values.
    """
    most = max(-least, greatest)
    size = len(counts)
    edges = np.linspace(least, greatest, size + 1)
    place = np.minimum((np.abs((edges[1:] + edges[:-1]) / 2) / most * size).astype(int), size - 1)
    magnitudes = np.bincount(place, weights=counts, minlength=size)
    best, threshold = np.inf, most
    for bins in range(_MAGNITUDES, size + 1, _MAGNITUDES // 8):
        divergence = _divergence(magnitudes, bins)
        if divergence < best:
            best, threshold = divergence, most * bins / size
    return max(min(least, 0.0), -threshold), min(max(greatest, 0.0), threshold)


def _divergence(magnitudes: np.ndarray, bins: int) -> float:
    """Between the first ``bins`` bins clipped and quantized; infinite where the latter is zero."""
    kept = magnitudes[:bins].astype(np.float64)
    clipped = kept.copy()
    clipped[-1] += magnitudes[bins:].sum()
    quantized = np.arange(bins) * _MAGNITUDES // bins
    filled = kept > 0
    totals = np.bincount(quantized, weights=kept, minlength=_MAGNITUDES)
    occupied = np.bincount(quantized, weights=filled, minlength=_MAGNITUDES)
    spread = np.where(filled, (totals / np.maximum(occupied, 1))[quantized], 0.0)
    if not spread.sum() or (clipped[~filled] > 0).any():
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


#: The methods by name.
RANGES: Mapping[str, Callable[[np.ndarray, float, float], tuple[float, float]]] = {
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
