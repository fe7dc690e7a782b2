"""What a product loses when its activation and its weight are rounded: a forecast.

Rounding to a grid of step s makes an error of mean square s²/12, close to independent from element
to element (Widrow & Kollár, Quantization Noise, section 4.2). So the squared error of output n of
``y = x W`` is, with x [K] divided by factors f, and the rows of W [K, N] multiplied by them::

    Σ_k (f_k W_kn)² · s_x²/12  +  Σ_k (x_k / f_k)² · s_n²/12

s_x is the step of the activation, one for all channels, and s_n that of output channel n. Summed
over n and divided by Σ_n y_n², it is the squared error of one token, relative to its own size. All
tokens count alike: norms give each of them the same size again, and a mean over plain squares would
be that of the few tokens with massive activations (Sun et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.quantization.scheme import ActivationGrid, Scheme
from omnigraph.passes.analysis.quantization.statistics import Observation
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid

#: The strengths of smoothing. At 1, every channel of the activation gets the same range.
STRENGTHS = tuple(np.linspace(0.3, 1.0, 8).round(1).tolist())
#: A channel is scaled by no more than this, either way: rounding must not meet tiny numbers.
_MOST = 1e3
_FLOAT8 = ir.DataType.FLOAT8E4M3FN
#: The mean square of the rounding of float8, relative to the squared value: uniform in half a unit
#: in the last of three bits.
_FLOAT8_SQUARE = (2.0**-4) ** 2 / 3


@dataclass(frozen=True, eq=False)
class Smoothing:
    """How an activation is smoothed.

    Args:
        factors: float32 [K], which divide it.
        strength: how much of the difficulty they move into the weights; 0 is none.
        error: what its products lose then (`Product.error`).
        gain: how many times less that is than without.
    """

    factors: np.ndarray
    strength: float
    error: float
    gain: float


class Product:
    """An activation that was observed, and the weights of all layers that multiply it.

    Args:
        seen: the activation, over K channels.
        weight: float32 [K, N], side by side.
    """

    def __init__(self, seen: Observation, weight: np.ndarray) -> None:
        self._seen = seen
        rows = seen.rows.astype(np.float32)
        results = np.square(rows @ weight, dtype=np.float64).sum(axis=1)
        counted = results > 0
        self._results = results[counted]  # [tokens] of the sizes of y, squared
        self._squares = np.square(rows[counted], dtype=np.float64)  # [tokens, K] of x, squared
        self._magnitudes = np.abs(weight)
        self._weights = np.square(weight, dtype=np.float64).sum(axis=1)  # [K]

    def error(
        self, activations: ActivationGrid | None, weights: WeightGrid, factors: np.ndarray
    ) -> float:
        """The root mean square over tokens of their errors, each relative to its own size.

        Args:
            activations: the grid of x; None leaves it in float.
            weights: the grid of W, with one scale for each output channel.
            factors: [K], which divide x and multiply W.
        """
        if not self._results.size:
            return 0.0
        squares = np.square(factors, dtype=np.float64)
        total = np.zeros_like(self._results)
        if activations is not None and activations.dtype == _FLOAT8:
            total += self._squares @ self._weights * _FLOAT8_SQUARE
        elif activations is not None:
            total += self._step(activations, factors) ** 2 / 12 * float(squares @ self._weights)
        if weights.dtype == _FLOAT8:
            total += self._squares @ self._weights * _FLOAT8_SQUARE
        else:
            steps = (self._magnitudes * factors[:, None]).max(axis=0) / weights.levels[1]
            steps_squared = np.square(steps, dtype=np.float64).sum()
            total += (self._squares / squares).sum(axis=1) * float(steps_squared) / 12
        return math.sqrt(float(np.mean(total / self._results)))

    def best(self, scheme: Scheme, strengths: Iterable[float]) -> Smoothing:
        """The strength of those given at which least is lost (Xiao et al. 2023, equation 4)."""
        plain = self.error(scheme.activations, scheme.weights, np.ones(len(self._weights)))
        channels = np.maximum(-self._seen.lows, self._seen.highs)
        largest, best = self._magnitudes.max(axis=1), None
        for strength in strengths:
            factors = _factors(channels, largest, strength)
            error = self.error(scheme.activations, scheme.weights, factors)
            if best is None or error < best.error:
                best = Smoothing(factors, strength, error, plain / error if error else 1.0)
        assert best is not None
        return best

    def _step(self, grid: ActivationGrid, factors: np.ndarray) -> float:
        low = min(float((self._seen.lows / factors).min()), 0.0)
        high = max(float((self._seen.highs / factors).max()), 0.0)
        return max(-low, high) / 127 if grid.symmetric else (high - low) / 255


def _factors(channels: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """[K], the divisor of each channel; one where its activations or its weights are all zero."""
    alive = (channels > 0) & (weights > 0)
    safe = np.where(alive, channels, 1.0), np.where(alive, weights, 1.0)
    factors = safe[0] ** strength / safe[1] ** (1 - strength)
    # Only differences between channels matter: keep the mean scale as it is.
    factors /= np.exp(np.log(factors[alive]).mean()) if alive.any() else 1.0
    return np.where(alive, np.clip(factors, 1 / _MOST, _MOST), 1.0).astype(np.float32)
