"""Calibration: what is observed, streamed, and how ranges are chosen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from omnigraph.errors import UsageError
from omnigraph.graph import Graph, declare_roles
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.quantization.calibration import METHODS, calibrate, second_moments
from omnigraph.quantization.ranges import mse, percentile
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
K = 24
W = RNG.standard_normal((K, 8)).astype(np.float32)
V = RNG.standard_normal((8, 4)).astype(np.float32)
TEXT = f"""g (float[batch,sequence,{K}] x, int64[batch,sequence] attention_mask, float[{K},8] w,
    float[8,4] v) => (float[batch,sequence,4] y)
    {{ a = MatMul(x, w)  h = Relu(a)  y = MatMul(h, v) }}"""


def graph() -> Graph:
    made = graph_with_weights(TEXT, w=W, v=V)
    declare_roles(made, {"attention_mask": "mask"})
    return made


def sample(length: int, seed: int, hidden: int = 0) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(0.5, 2, (2, length, K)).astype(np.float32)
    mask = np.ones((2, length), np.int64)
    mask[0, length - hidden :] = 0
    x[mask == 0] = 1e6
    return {"x": x, "attention_mask": mask}


class Samples:
    """Samples that are made anew each time they are read, and counted."""

    def __init__(self, count: int, hidden: int = 0) -> None:
        self.count, self.hidden, self.read = count, hidden, 0

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        self.read += 1
        return (sample(5 + i % 3, i, self.hidden) for i in range(self.count))

    def rows(self) -> np.ndarray:
        """All positions that count, [positions, K]."""
        return np.concatenate([s["x"][s["attention_mask"] == 1] for s in self])


@pytest.mark.parametrize("method", METHODS)
def test_sums_are_those_of_all_positions_at_once(method: str):
    samples = Samples(7)
    found = calibrate(graph(), linear_layers(graph()), samples, method=method, source="a test")
    assert samples.read == (1 if method in ("min-max", "mean") else 2)
    assert (found.samples, found.source, found.method) == (7, "a test", method)
    rows = samples.rows()
    for name, x in (("w", rows), ("v", np.maximum(rows @ W, 0))):
        seen = found.observations[name]
        assert seen.least == pytest.approx(x.min(), rel=1e-5, abs=1e-6)
        assert seen.greatest == pytest.approx(x.max(), rel=1e-5)
        assert seen.rms == pytest.approx(np.sqrt(np.mean(np.square(x))), rel=1e-5)
        np.testing.assert_allclose(seen.lows, x.min(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(seen.highs, x.max(0), rtol=1e-5)
        assert len(seen.rows) == min(64, len(x))
        assert all(np.isclose(x, row, rtol=1e-4, atol=1e-6).all(1).any() for row in seen.rows)
        np.testing.assert_allclose(seen.means, x.mean(0), rtol=1e-4, atol=1e-4)
        assert min(seen.least, 0) <= seen.low <= 0 <= seen.high <= max(seen.greatest, 0)
    if method == "min-max":
        assert found.observations["v"].low == 0  # of a one-sided activation


def test_positions_that_a_mask_hides_do_not_count():
    found = calibrate(graph(), linear_layers(graph()), Samples(4, hidden=2))
    assert found.observations["w"].greatest < 100
    moments = dict(second_moments(graph(), linear_layers(graph()), Samples(4, hidden=2)))
    assert np.isfinite(moments["w"]).all() and moments["w"].max() < 1e5


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_second_moments_whatever_memory_there_is(budget: int):
    samples = Samples(5)
    found = dict(second_moments(graph(), linear_layers(graph()), samples, budget=budget))
    assert samples.read == (2 if budget == 1 else 1)
    rows = samples.rows()
    np.testing.assert_allclose(found["w"], rows.T @ rows, rtol=1e-4, atol=1e-2)
    inner = np.maximum(rows @ W, 0)
    np.testing.assert_allclose(found["v"], inner.T @ inner, rtol=1e-4, atol=1e-1)


def test_what_cannot_be_calibrated_on():
    bad = sample(5, 0)
    bad["x"][1, 2, 3] = np.nan
    with pytest.raises(UsageError, match=r"The input of .* is NaN.*\n?.*found NaN"):
        calibrate(graph(), linear_layers(graph()), [sample(5, 1), bad])
    with pytest.raises(UsageError, match="no samples"):
        calibrate(graph(), linear_layers(graph()), [])
    hidden = sample(5, 0)
    hidden["attention_mask"][:] = 0
    with pytest.raises(UsageError, match="masks of the calibration data hide everything"):
        calibrate(graph(), linear_layers(graph()), [hidden])
    with pytest.raises(UsageError, match="min-max, mean, percentile, mse"):
        calibrate(graph(), linear_layers(graph()), Samples(1), method="best")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_constant_activation_has_a_range_from_zero_to_it(method: str, value: float):
    feeds = sample(5, 0)
    feeds["x"][:] = value
    seen = calibrate(graph(), linear_layers(graph()), [feeds], method=method).observations["w"]
    assert (seen.low, seen.high) == (min(value, 0), max(value, 0))


# Ranges -------------------------------------------------------------------------------------------


def rounding_error(x: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.clip(round(-low / scale), 0, 255)
    return float(np.square((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale - x).mean())


def histogram(x: np.ndarray) -> tuple[np.ndarray, float, float]:
    return np.histogram(x, bins=2048)[0], float(x.min()), float(x.max())


def test_a_lone_outlier_is_clipped():
    x = RNG.standard_normal(500_000)
    x[0] = 60.0
    low, high = percentile(*histogram(x))
    assert -8 < low < -3 and 3 < high < 15


@pytest.mark.parametrize("outliers", [[60.0], [-40.0], [9.0, 9.0, 9.0], [-12.0, 30.0]])
def test_no_range_has_less_squared_error_than_the_one_found(outliers: list[float]):
    x = np.concatenate([np.abs(RNG.standard_normal(300_000)), outliers])
    low, high = mse(*histogram(x))
    found = rounding_error(x, low, high)
    assert found < rounding_error(x, min(x.min(), 0), x.max())
    for one in np.linspace(min(x.min(), 0), 0, 25):
        for other in np.linspace(0.5, x.max(), 40):
            # Within 5%: the search knows a histogram, and takes steps of its own.
            assert found < rounding_error(x, one, other) * 1.05


def test_what_is_even_is_not_clipped():
    x = RNG.uniform(-1, 3, 200_000)
    low, high = mse(*histogram(x))
    assert low < -0.95 and high > 2.9


def test_the_mean_of_the_ranges_of_samples():
    samples = [{"x": np.array([[-1, 2]], np.float32)}, {"x": np.array([[-3, 1]], np.float32)}]
    text = "g (float[N,2] x, float[2,3] w) => (float[N,3] y) { y = MatMul(x, w) }"
    one = graph_with_weights(text, w=np.ones((2, 3), np.float32))
    seen = calibrate(one, linear_layers(one), samples, method="mean").observations["w"]
    assert (seen.low, seen.high) == (-2, 1.5) and (seen.least, seen.greatest) == (-3, 2)


# Statistics ---------------------------------------------------------------------------------------


def test_a_weight_that_is_used_twice_has_the_range_of_both():
    text = """g (float[N,4] x, float[4,4] w) => (float[N,4] z) {
        y = MatMul(x, w)  z = MatMul(y, w) }"""
    twice = graph_with_weights(text, w=2 * np.eye(4, dtype=np.float32))
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    seen = calibrate(twice, linear_layers(twice), [{"x": x}]).observations["w"]
    assert (seen.low, seen.high, seen.least) == (-8, 6, -8)
    assert sorted(map(tuple, seen.rows)) == sorted(map(tuple, np.concatenate([x, 2 * x])))
    np.testing.assert_allclose(seen.means, 1.5 * x.mean(0))


def test_statistics_are_saved_read_and_joined(tmp_path: Path):
    found = calibrate(graph(), linear_layers(graph()), Samples(3), source="a test")
    found.save(tmp_path / "seen.npz")
    again = Statistics.load(tmp_path / "seen.npz")
    assert again.digest == found.digest and again.samples == 3
    assert Statistics.is_saved(tmp_path / "seen.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["seen.npz"]
    for field in ("lows", "highs", "rows"):
        one, other = (getattr(s.observations["w"], field) for s in (again, found))
        np.testing.assert_array_equal(one, other)
    other = Statistics({"w": found.observations["v"], "z": found.observations["v"]})
    joined = found.joined(other)
    assert joined.observations["w"] is found.observations["w"]
    assert set(joined.observations) == {"w", "v", "z"}
    changed = Observation(**{**vars(found.observations["w"]), "high": 7.0})
    assert Statistics({**found.observations, "w": changed}, "min-max", "a test", 3).digest != (
        found.digest
    )


def test_damaged_statistics_are_refused(tmp_path: Path):
    path = tmp_path / "seen.npz"
    calibrate(graph(), linear_layers(graph()), Samples(3)).save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["w/range"] = arrays["w/range"] * 2
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match="digest"):
        Statistics.load(path)
    path.write_bytes(b"nothing")
    assert not Statistics.is_saved(path)
    with pytest.raises(UsageError, match="cannot be read as calibration statistics"):
        Statistics.load(path)
