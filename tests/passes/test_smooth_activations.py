"""Outliers move into the weights: exactly, and only where something before can take the scale."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.product_error import Product
from omnigraph.passes.analysis.quantization.scheme import PER_CHANNEL, UNSIGNED
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import round_weight
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq, activation_grid
from omnigraph.passes.smooth_activations import SmoothActivations
from omnigraph.testing import assert_miss, graph_with_weights

RNG = np.random.default_rng(0)
K, N = 64, 24
SCALE = RNG.uniform(0.5, 1.5, K).astype(np.float32)
SCALE[5] = 60.0  # one channel is an outlier
BIAS = RNG.standard_normal(K).astype(np.float32)
W = RNG.standard_normal((K, N)).astype(np.float32)
V = RNG.standard_normal((K, N)).astype(np.float32)
NORM = f"""g (float[B,{K}] h, float[{K}] scale, float[{K}] bias, float[{K},{N}] w, float[{K},{N}] v)
    => (float[B,{N}] y, float[B,{N}] z)
    {{ x = LayerNormalization<axis=-1>(h, scale, bias)  y = MatMul(x, w)  z = MatMul(x, v) }}"""
GATED = f"""g (float[B,{K}] h, float[{K},{K}] gate, float[{K},{K}] up, float[{K}] bias,
    float[{K},{N}] w) => (float[B,{N}] y)
    {{ a = MatMul(h, gate)  s = Sigmoid(a)  b = MatMul(h, up)  c = Add(b, bias)
       m = Mul(s, c)  y = MatMul(m, w) }}"""
H = {"h": RNG.standard_normal((200, K)).astype(np.float32)}


def norm_graph() -> Graph:
    return graph_with_weights(NORM, scale=SCALE, bias=BIAS, w=W, v=V)


def seen(**activations: np.ndarray) -> QuantizationFacts:
    """What calibration would see, by the name of the weight."""
    found = {name: Observation.of(x) for name, x in activations.items()}
    return QuantizationFacts(Statistics(found, "min-max", "a test", 1))


def normed(graph: Graph) -> np.ndarray:
    """The activation x of a norm graph."""
    h = H["h"]
    scale, bias = (v.const_value.numpy() for v in graph.graph[0].inputs[1:])
    return ((h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)) * scale + bias


def assert_equal_numbers(before: Graph, after: Graph) -> None:
    check_graph(after, "smoothing")
    found = deviations(GraphRunner(after).run(H), GraphRunner(before).run(H))
    # Each factor is rounded once more on either side: a few roundings of sums of 64 terms.
    tolerance = Tolerance.for_precision("fp32", depth=6, contraction=K)
    assert all(deviation.within(tolerance) for deviation in found.values()), found


def test_the_numbers_stay_and_the_outlier_goes():
    before, after = norm_graph(), norm_graph()
    x = normed(before)
    (record,) = run_passes(after, [SmoothActivations(seen(w=x, v=x))])
    assert record.modified
    assert_equal_numbers(before, after)
    spread = np.abs(x).max(0)
    smooth = np.abs(normed(after)).max(0)
    assert smooth.max() / np.median(smooth) < 0.3 * spread.max() / np.median(spread)


def test_int8_is_closer_for_it():
    x = normed(norm_graph())
    exact = GraphRunner(norm_graph()).run(H)["y"]
    errors = []
    for passes in ((), (SmoothActivations(seen(w=x, v=x)),)):
        graph = norm_graph()
        run_passes(graph, passes)
        names = [n for n in graph.graph.initializers if n[0] in "wv"]
        run_passes(graph, [InsertQdq(facts=seen(**dict.fromkeys(names, normed(graph))))])
        errors.append(np.square(GraphRunner(graph).run(H)["y"] - exact).mean())
    assert errors[1] < 0.5 * errors[0]


def test_the_factor_of_a_gate_takes_the_scale():
    arrays = {
        "gate": RNG.standard_normal((K, K)).astype(np.float32),
        "up": RNG.standard_normal((K, K)).astype(np.float32) * SCALE,
        "bias": BIAS,
        "w": W,
    }
    before, after = (graph_with_weights(GATED, **arrays) for _ in range(2))
    m = 1 / (1 + np.exp(-H["h"] @ arrays["gate"])) * (H["h"] @ arrays["up"] + BIAS)
    (record,) = run_passes(after, [SmoothActivations(seen(w=m))])
    assert record.modified
    assert_equal_numbers(before, after)
    assert not any(name in after.graph.initializers for name in ("up", "bias", "w"))


def test_a_second_run_changes_nothing_and_names_tell_what_was_done():
    x = normed(norm_graph())
    one, other = norm_graph(), norm_graph()
    smooth = SmoothActivations(seen(w=x, v=x))
    run_passes(one, [smooth])
    run_passes(other, [smooth])
    assert sorted(one.graph.initializers) == sorted(other.graph.initializers)
    (again,) = run_passes(one, [smooth])
    assert not again.modified
    third = norm_graph()
    run_passes(third, [SmoothActivations(seen(w=2 * x + 1, v=x), strength=0.9)])
    assert not set(one.graph.initializers) & set(third.graph.initializers)


@pytest.mark.parametrize("channel", ["activation", "weight"])
def test_channels_of_nothing_are_left(channel: str):
    arrays = {"scale": SCALE.copy(), "bias": BIAS.copy(), "w": W.copy(), "v": V.copy()}
    if channel == "weight":
        arrays["w"][3] = arrays["v"][3] = 0
    else:
        arrays["scale"][3] = arrays["bias"][3] = 0
    before, after = (graph_with_weights(NORM, **arrays) for _ in range(2))
    x = normed(before)
    run_passes(after, [SmoothActivations(seen(w=x, v=x))])
    assert_equal_numbers(before, after)


PLAIN = f"""g (float[B,{K}] h, float[{K},{N}] w) => (float[B,{N}] y)
    {{ x = Elu(h) y = MatMul(x, w) }}"""
RESIDUAL = f"""g (float[B,{K}] h, float[{K}] scale, float[{K}] bias, float[{K},{N}] w,
    float[{K},{N}] v)
    => (float[B,{N}] y, float[B,{N}] z, float[B,{K}] r)
    {{ x = LayerNormalization<axis=-1>(h, scale, bias)  y = MatMul(x, w)  z = MatMul(x, v)
       r = Tanh(x) }}"""


def test_a_node_divides_what_others_read_too():
    before, after = (
        graph_with_weights(RESIDUAL, scale=SCALE, bias=BIAS, w=W, v=V) for _ in range(2)
    )
    x = normed(before)
    (record,) = run_passes(after, [SmoothActivations(seen(w=x, v=x))])
    assert record.modified
    assert_equal_numbers(before, after)
    readers = {user.op_type for user, _ in after.graph[0].outputs[0].uses()}
    assert readers == {"Mul", "Tanh"}
    divide = next(node for node in after.graph if node.op_type == "Mul")
    assert [user.op_type for user, _ in divide.outputs[0].uses()] == ["MatMul", "MatMul"]
    (again,) = run_passes(after, [SmoothActivations(seen(w=x, v=x))])
    assert not again.modified


def test_a_node_divides_where_nothing_before_can():
    h = H["h"] * SCALE
    before, after = (graph_with_weights(PLAIN, w=W) for _ in range(2))
    run_passes(after, [SmoothActivations(seen(w=np.where(h > 0, h, np.expm1(np.minimum(h, 0)))))])
    assert [node.op_type for node in after.graph] == ["Elu", "Mul", "MatMul"]
    assert_equal_numbers(before, after)


def test_the_strength_is_the_one_that_loses_least():
    x = normed(norm_graph())
    product = Product(Observation.of(x), np.concatenate([W, V], axis=1))
    lost = []
    for strength in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0, None):
        graph = norm_graph()
        run_passes(graph, [SmoothActivations(seen(w=x, v=x), strength=strength)])
        factors = SCALE / graph.graph[0].inputs[1].const_value.numpy()
        lost.append(product.error(UNSIGNED, PER_CHANNEL, factors))
    assert lost[-1] <= min(lost[:-1]) < product.error(UNSIGNED, PER_CHANNEL, np.ones(K))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_forecast_is_what_is_lost(share: float):
    """Over many tokens, within a fifth: rounding errors are uniform only nearly."""
    x = (RNG.standard_normal((400, K)) * SCALE**share).astype(np.float32)
    x[7] *= 20  # one massive token
    factors = (SCALE ** (0.4 * share)).astype(np.float32)
    seen_ = Observation.of(x)
    step, zero = activation_grid(Observation.of(x / factors), UNSIGNED)
    rounded = (np.clip(np.rint(x / factors / step) + zero, 0, 255) - zero) * step
    weight = round_weight(W * factors[:, None], PER_CHANNEL).dequantized()
    errors = np.square(rounded @ weight - x @ W).sum(1) / np.square(x @ W).sum(1)
    forecast = Product(seen_, W).error(UNSIGNED, PER_CHANNEL, factors)
    assert forecast == pytest.approx(float(np.sqrt(errors.mean())), rel=0.2)


def test_what_is_left_alone_and_why():
    x = normed(norm_graph())
    assert_miss(SmoothActivations(), norm_graph(), "there was no calibration")
    known = seen(w=x, v=x)
    assert_miss(SmoothActivations(known, keep=("model",)), norm_graph(), "do not quantize it")
    even = seen(w=RNG.choice([-1.0, 1.0], (50, K)).astype(np.float32))
    plain = graph_with_weights(PLAIN, w=np.sign(W))
    assert_miss(SmoothActivations(even), plain, "lose no less with any strength")
    twice = NORM.replace("z = MatMul(x, v)", "t = Tanh(h) z = MatMul(t, w)")
    graph = graph_with_weights(
        twice.replace(f", float[{K},{N}] v", ""), scale=SCALE, bias=BIAS, w=W
    )
    assert_miss(SmoothActivations(known), graph, "the weight has other uses")
