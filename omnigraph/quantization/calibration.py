"""Calibration: statistics of the activations of linear layers, over a stream of samples.

Memory holds one sample's activations and, for each activation, sums by channel and a histogram: it
does not grow with the number of samples. Methods with a histogram read the data twice: the first
reading finds the range of its bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omnigraph.errors import UsageError
from omnigraph.graph import Graph, describe, role_of
from omnigraph.passes.analysis.quantization.linear_layers import LinearLayer
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.matching import same_dim
from omnigraph.progress import Progress, silent
from omnigraph.quantization.options import MEAN, METHODS, MIN_MAX
from omnigraph.quantization.ranges import RANGES
from omnigraph.quantization.tap import Feeds, Tap

_BINS = 2048
#: Positions of each activation that are kept, to forecast what products of it lose.
_ROWS = 64
#: Memory for second moments, which limits how many are summed in one reading of the data.
_MOMENT_BYTES = 512 << 20


def calibrate(
    graph: Graph,
    layers: Sequence[LinearLayer],
    feeds: Iterable[Feeds],
    *,
    method: str = MIN_MAX,
    source: str = "",
    progress: Progress = silent,
) -> Statistics:
    """Observe the activations of linear layers.

    Positions that an attention mask of the same dimensions hides do not count.

    Args:
        graph: the Graph of the linear layers; it is not changed.
        layers: whose activations to observe; an activation of several layers is observed once.
        feeds: inputs by name, for each sample; read once, or twice where ``method`` needs it.
        method: one of `METHODS`.
        source: of the samples, for a person.
        progress: called with each sample.

    Raises:
        UsageError: there are no samples, or an activation is NaN or infinite.
    """
    if method not in METHODS:
        raise UsageError(
            f"There is no calibration method {method!r}",
            expected=", ".join(METHODS),
            hint="min-max takes the whole range; the others clip",
        )
    probe = _Probe(graph, layers)
    samples = 0
    for given in feeds:
        samples += 1
        progress(f"calibrate {graph.graph.name}: sample {samples}")
        for observed, rows in probe.rows(given):
            observed.see(rows)
    if not samples:
        raise UsageError(
            "There are no samples to calibrate on", expected="one or more", hint="see --calibration"
        )
    if method in RANGES:
        for number, given in enumerate(feeds, 1):
            progress(f"calibrate {graph.graph.name}: of {samples} samples, histogram {number}")
            for observed, rows in probe.rows(given):
                observed.count(rows)
    found: dict[str, Observation] = {}
    for observed in probe.observed:
        seen = observed.observation(method)
        for name in {linear.weight.name or "" for linear in observed.linear_layers}:
            found[name] = found[name].joined(seen) if name in found else seen
    return Statistics(found, method, source, samples)


def second_moments(
    graph: Graph,
    layers: Sequence[LinearLayer],
    feeds: Iterable[Feeds],
    *,
    budget: int = _MOMENT_BYTES,
    progress: Progress = silent,
) -> Iterator[tuple[str, np.ndarray]]:
    """The sum of x xᵀ over every position of every sample, for the activation of each layer.

    The data are read once for each group of activations whose sums fit into ``budget`` bytes.

    Yields:
        The name of a layer's weight, and float32 [K, K].
    """
    waiting = list(_Probe(graph, layers).observed)
    while waiting:
        group: list[_Observed] = []
        used = 0
        while waiting and (not group or used + 4 * waiting[0].terms ** 2 <= budget):
            used += 4 * waiting[0].terms ** 2
            group.append(waiting.pop(0))
        probe = _Probe(graph, [linear for observed in group for linear in observed.linear_layers])
        sums = [np.zeros((o.terms, o.terms), np.float32) for o in probe.observed]
        for number, given in enumerate(feeds, 1):
            progress(f"second moments of {len(sums)} activations: sample {number}")
            for total, (_, rows) in zip(sums, probe.rows(given), strict=True):
                total += rows.T @ rows
        for observed, total in zip(probe.observed, sums, strict=True):
            for linear in observed.linear_layers:
                yield linear.weight.name or "", total


class _Probe:
    """A Graph whose outputs are the activations of some linear layers."""

    def __init__(self, graph: Graph, layers: Sequence[LinearLayer]) -> None:
        by_activation: dict[str, list[LinearLayer]] = {}
        for linear in layers:
            by_activation.setdefault(linear.activation.name or "", []).append(linear)
        self.observed = [_Observed(linear_layers) for linear_layers in by_activation.values()]
        masks = [v for v in graph.graph.inputs if role_of(graph, v.name) == "mask"]
        self._masks = {
            name: [m.name or "" for m in masks if _hides(m, found[0].activation)]
            for name, found in by_activation.items()
        }
        self._tap = Tap(graph, list(by_activation))

    def rows(self, feeds: Feeds) -> Iterator[tuple[_Observed, np.ndarray]]:
        """Each activation of one sample, float32 [positions, K]."""
        results = self._tap.run(feeds)
        for observed in self.observed:
            found = results[observed.name]
            shown = np.ones(found.shape[:-1], bool)
            for name in self._masks[observed.name]:
                if feeds[name].shape == shown.shape[:2]:
                    mask = feeds[name].astype(bool)
                    shown &= mask.reshape(mask.shape + (1,) * (shown.ndim - 2))
            yield observed, found[shown]


def _hides(mask: ir.Value, activation: ir.Value) -> bool:
    """Whether a mask [B, T] masks the positions of an activation [B, T, …]."""
    shape = activation.shape
    if mask.shape is None or shape is None or len(mask.shape) != 2 or len(shape) < 3:
        return False
    return all(same_dim(mask.shape[axis], shape[axis]) for axis in range(2))


@dataclass(eq=False)
class _Observed:
    """Sums and limits of one activation of K channels, over the samples so far."""

    linear_layers: Sequence[LinearLayer]
    positions: int = 0
    squares: float = 0.0
    ends: list[tuple[float, float]] = field(default_factory=list)  # of each sample
    lows: np.ndarray = field(init=False)  # [K]
    highs: np.ndarray = field(init=False)  # [K]
    total: np.ndarray = field(init=False)  # [K] float64
    histogram: np.ndarray = field(init=False)  # [bins] int64
    kept: np.ndarray = field(init=False)  # [R, K], the rows of the least random keys
    keys: np.ndarray = field(init=False)  # [R]

    def __post_init__(self) -> None:
        self.lows = np.full(self.terms, np.inf, np.float32)
        self.highs = np.full(self.terms, -np.inf, np.float32)
        self.total = np.zeros(self.terms, np.float64)
        self.histogram = np.zeros(_BINS, np.int64)
        self.kept, self.keys = np.zeros((0, self.terms), np.float32), np.zeros(0)
        self._draw = np.random.default_rng(0)

    @property
    def least(self) -> float:
        """Of all elements."""
        return float(self.lows.min())

    @property
    def greatest(self) -> float:
        """Of all elements."""
        return float(self.highs.max())

    @property
    def name(self) -> str:
        """The name of the activation."""
        return self.linear_layers[0].activation.name or ""

    @property
    def terms(self) -> int:
        """K, the number of channels."""
        return self.linear_layers[0].contraction

    def see(self, rows: np.ndarray) -> None:
        """Add rows [positions, K]."""
        if not rows.size:
            return
        lows, highs = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(lows).all() and np.isfinite(highs).all()):
            raise UsageError(
                f"The input of {describe(self.linear_layers[0].node)} is NaN or infinite",
                expected="finite numbers on every sample of the calibration data",
                found="NaN" if np.isnan(rows).any() else "an infinity",
                hint="the model itself gives this: look at the sample, and at the layers before it",
            )
        self.positions += len(rows)
        self.ends.append((float(lows.min()), float(highs.max())))
        np.minimum(self.lows, lows, out=self.lows)
        np.maximum(self.highs, highs, out=self.highs)
        self._keep(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        self.squares += float(np.square(rows, dtype=np.float64).sum())

    def _keep(self, rows: np.ndarray) -> None:
        """Keep some of all rows, each as likely as any other."""
        keys = self._draw.random(len(rows))
        new = keys < (self.keys.max() if self.keys.size == _ROWS else np.inf)
        keys, rows = np.append(self.keys, keys[new]), np.concatenate([self.kept, rows[new]])
        least = np.argsort(keys, kind="stable")[:_ROWS]
        self.keys, self.kept = keys[least], rows[least]

    def count(self, rows: np.ndarray) -> None:
        """Count rows [positions, K] in the histogram of the observed range."""
        if rows.size and self.greatest > self.least:
            limits = (self.least, self.greatest)
            self.histogram += np.histogram(rows, bins=_BINS, range=limits)[0]

    def observation(self, method: str) -> Observation:
        """The statistics. The range of a constant activation extends from zero to it."""
        if not self.positions:
            raise UsageError(
                f"No position of the input of {describe(self.linear_layers[0].node)} was observed",
                expected="positions that no attention mask hides",
                hint="the masks of the calibration data hide everything",
            )
        low, high = min(self.least, 0.0), max(self.greatest, 0.0)
        if method == MEAN:
            ends = np.mean(self.ends, axis=0)
            low, high = min(float(ends[0]), 0.0), max(float(ends[1]), 0.0)
        if method in RANGES and self.greatest > self.least:
            low, high = RANGES[method](self.histogram, self.least, self.greatest)
        return Observation(
            low,
            high,
            rms=float(np.sqrt(self.squares / (self.positions * self.terms))),
            lows=self.lows,
            highs=self.highs,
            means=(self.total / self.positions).astype(np.float32),
            rows=self.kept,
        )
