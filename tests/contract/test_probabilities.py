"""Probabilities are compared by what a kernel can keep; other outputs relative to themselves."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.probabilities import least_scales
from omnigraph.contract.tolerance import Tolerance, deviations, noises, output_scales
from omnigraph.testing import graph_from_text

#: Of a text detector, and of one layer.
TOLERANCES = [
    Tolerance.for_precision("fp32", depth=200, contraction=576),
    Tolerance.for_precision("fp32", depth=1, contraction=1),
]
UNIT = 2.0**-24


def logits(center: float = -14.0, size: int = 4096) -> np.ndarray:
    return np.random.default_rng(0).normal(center, 1.0, (1, size))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def within(found: np.ndarray, expected: np.ndarray, tolerance: Tolerance) -> bool:
    least = least_scales(
        graph_from_text("g (float[N,M] x) => (float[N,M] y) { y = Sigmoid(x) }"), tolerance
    )
    assert list(least) == ["y"]
    scales = output_scales([{"y": expected}], least)
    far = deviations({"y": found}, {"y": expected}, scales)["y"]
    (noise,) = noises([{"y": found}], [{"y": expected}], least).values()
    assert (noise.pooled, noise.peak) == pytest.approx((far.rms, far.peak))
    return far.within(tolerance)


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("center", [-30.0, -14.0, -8.0, 0.0, 9.0])
def test_onnxruntimes_sigmoid_is_within_it(center, tolerance):
    graph = graph_from_text("g (float[N,M] x) => (float[N,M] y) { y = Sigmoid(x) }")
    given = logits(center).astype(np.float32)
    found = GraphRunner(graph).run({"x": given})["y"]
    assert within(found, sigmoid(given.astype(np.float64)), tolerance)


def test_onnxruntimes_sigmoid_is_not_exact_relative_to_small_results():
    graph = graph_from_text("g (float[N,M] x) => (float[N,M] y) { y = Sigmoid(x) }")
    given = logits().astype(np.float32)
    found, expected = GraphRunner(graph).run({"x": given})["y"], sigmoid(given.astype(np.float64))
    far = deviations({"y": found}, {"y": expected})["y"]
    assert not far.within(TOLERANCES[0])


FAULTS = {
    "the sigmoid is missing": lambda x: x,
    "all zeros": lambda x: np.zeros_like(x),
    "one element off by 1e-4": lambda x: sigmoid(x) + 1e-4 * (np.arange(x.size) == 77),
    "all off by 1e-6": lambda x: sigmoid(x) + 1e-6,
    "inputs off by a tenth": lambda x: sigmoid(x + 0.5),
}


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault, tolerance):
    given = logits(-12.0)
    assert not within(FAULTS[fault](given), sigmoid(given), tolerance)


@pytest.mark.parametrize("center", [-6.0, -2.0, 0.0])
def test_what_the_sigmoid_is_given_may_be_off_by_the_tolerance(center):
    (tolerance, _), given = TOLERANCES, logits(center)
    error = np.random.default_rng(1).normal(0, np.sqrt(np.mean(given**2)), given.shape)
    # As large as roundings are; the tolerance is 3.5 times that.
    assert within(sigmoid(given + tolerance.rms / 3.5 * error), sigmoid(given), tolerance)
    assert not within(sigmoid(given + 20 * tolerance.rms * error), sigmoid(given), tolerance)


def test_a_scale_is_never_above_one_and_takes_no_nan():
    expected = {"y": np.append(sigmoid(np.linspace(-80, 80, 1000)), [np.nan, np.inf])}
    for least in (0.0, 1e-3, 0.9):
        assert 0.5 < output_scales([expected], {"y": least})["y"] <= 1


def softmax(x: np.ndarray) -> np.ndarray:
    made = np.exp(x - x.max(-1, keepdims=True))
    return made / made.sum(-1, keepdims=True)


def test_a_softmax_of_many_may_be_off_where_two_are_as_likely():
    """One probability of 0.5 is far above the root mean square of 6,000."""
    tolerance = TOLERANCES[0]
    given = np.random.default_rng(0).normal(0, 3, (40, 6000))
    given[:, :2] = 18
    error = tolerance.rms / 3.5 * np.random.default_rng(1).normal(0, 3.2, given.shape)
    expected, found = {"y": softmax(given)}, {"y": softmax(given + error)}
    scales = output_scales([expected], {"y": 0.0})
    assert deviations(found, expected, scales)["y"].within(tolerance)
    assert not deviations(found, expected)["y"].within(tolerance)
    wrong = {"y": expected["y"] + 1e-4 * (given == given[7, 8])}
    assert not deviations(wrong, expected, scales)["y"].within(tolerance)
    swapped = {"y": expected["y"][:, ::-1]}
    assert not deviations(swapped, expected, scales)["y"].within(tolerance)


OUTPUTS = {
    "s = Sigmoid(x) y = ReduceMean(s)": True,
    "s = Sigmoid(x) t = Sigmoid(y0) y = Concat<axis=0>(s, t)": True,
    "s = Sigmoid(x) y = If(c) <then_branch = g () => (float[N] a) { a = Identity(s) }, "
    "else_branch = h () => (float[N] b) { b = Transpose<perm=[0]>(s) }>": True,
    "s = Sigmoid(x) y = Mul(s, x)": False,
    "y = Tanh(x)": False,
    "z = Softmax(x) y = Identity(z)": True,
    "s = Sigmoid(x) y = Concat<axis=0>(s, x)": False,
    "s = Sigmoid(x) y = If(c) <then_branch = g () => (float[N] a) { a = Identity(s) }, "
    "else_branch = h () => (float[N] b) { b = Exp(s) }>": False,
    "y = Identity(x)": False,
}


@pytest.mark.parametrize("text", OUTPUTS)
def test_only_outputs_of_probabilities_have_a_least_scale(text):
    graph = graph_from_text(f"net (float[N] x, float[N] y0, bool c) => (float[M] y) {{ {text} }}")
    assert bool(least_scales(graph, TOLERANCES[0])) == OUTPUTS[text]
