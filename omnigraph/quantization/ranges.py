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


#: The methods that need a histogram, by name.
RANGES: Mapping[str, Callable[[np.ndarray, float, float], tuple[float, float]]] = {
    "percentile": percentile,
    "mse": mse,
}
