"""The range of an activation that is worth having codes for, from a histogram of what was seen.

Every function takes counts [bins] of equal bins from ``least`` to ``greatest``, and gives the ends
of a range that holds zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

#: Codes of eight bits.
_LEVELS = 255
#: Elements that are clipped at either end, at most.
_TAIL = 1e-4
#: Bins of a histogram of magnitudes that eight bits have one code each for (Migacz 2017).
_CODES = 128
#: Shares of the whole range that are tried.
_SHARES = np.concatenate([[1.0], np.geomspace(0.98, 0.02, 80)])


def percentile(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """All but the outermost 1 of 10,000 elements at either end."""
    edges = np.linspace(least, greatest, len(counts) + 1)
    below = np.cumsum(counts) / counts.sum()
    low = edges[np.searchsorted(below, _TAIL, side="right")]
    high = edges[np.searchsorted(below, 1 - _TAIL) + 1]
    return min(float(low), 0.0), max(float(high), 0.0)


def mse(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """The range whose rounding and clipping to 256 codes together have the least squared error.

    Each end in turn is moved inwards while that helps, so that outliers of one side are clipped
    without the other being (Banner et al. 2019, section 3, found here by search).
    """
    edges = np.linspace(least, greatest, len(counts) + 1)
    centers, weights = (edges[1:] + edges[:-1]) / 2, counts.astype(np.float64)
    full = min(least, 0.0), max(greatest, 0.0)

    def error(low: float, high: float) -> float:
        scale = (high - low) / _LEVELS or 1.0
        # Within the range, the error of rounding is that of a step; outside, it is the distance.
        outside = np.maximum(centers - high, 0) + np.maximum(low - centers, 0)
        inside = np.where(outside > 0, 0.0, scale**2 / 12)
        return float(weights @ (inside + np.square(outside)))

    low, high = full
    for _ in range(2):
        high = min((full[1] * share for share in _SHARES), key=lambda end: error(low, end))
        low = min((full[0] * share for share in _SHARES), key=lambda end: error(end, high))
    return low, high


def entropy(counts: np.ndarray, least: float, greatest: float) -> tuple[float, float]:
    """The range of magnitudes that loses the least information (Migacz 2017, "8-bit inference").

    Of each range, the distribution with all that is clipped in its last bin is compared with the
    one that 128 codes can tell, by their Kullback-Leibler divergence.
    """
    most = max(-least, greatest)
    size = len(counts)
    edges = np.linspace(least, greatest, size + 1)
    place = np.minimum((np.abs((edges[1:] + edges[:-1]) / 2) / most * size).astype(int), size - 1)
    magnitudes = np.bincount(place, weights=counts, minlength=size)
    best, threshold = np.inf, most
    for bins in range(_CODES, size + 1, _CODES // 8):
        divergence = _divergence(magnitudes, bins)
        if divergence < best:
            best, threshold = divergence, most * bins / size
    return max(min(least, 0.0), -threshold), min(max(greatest, 0.0), threshold)


def _divergence(magnitudes: np.ndarray, bins: int) -> float:
    """Of the first ``bins`` bins and what 128 codes make of them; infinite where one has none."""
    kept = magnitudes[:bins].astype(np.float64)
    clipped = kept.copy()
    clipped[-1] += magnitudes[bins:].sum()
    code = np.arange(bins) * _CODES // bins
    filled = kept > 0
    totals = np.bincount(code, weights=kept, minlength=_CODES)
    occupied = np.bincount(code, weights=filled, minlength=_CODES)
    spread = np.where(filled, (totals / np.maximum(occupied, 1))[code], 0.0)
    if not spread.sum() or (clipped[~filled] > 0).any():
        return np.inf
    p, q = clipped / clipped.sum(), spread / spread.sum()
    return float((p[filled] * np.log(p[filled] / q[filled])).sum())


#: By name.
RANGES: Mapping[str, Callable[[np.ndarray, float, float], tuple[float, float]]] = {
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}
