"""Tokens get one size: exactly, and only where a few of them are far larger than the others."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.scheme import PER_CHANNEL, UNSIGNED, Scheme
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.normalize_tokens import NormalizeTokens
from omnigraph.testing import assert_miss, graph_with_weights

RNG = np.random.default_rng(0)
K, N = 64, 24
W = RNG.standard_normal((K, N)).astype(np.float32)
V = RNG.standard_normal((K, N)).astype(np.float32)
B = RNG.standard_normal(N).astype(np.float32)
TEXT = f"""g (float[B,T,{K}] h, float[{K},{N}] w, float[{N}] b, float[{K},{N}] v)
    => (float[B,T,{N}] y, float[B,T,{N}] z)
    {{ x = Elu(h)  a = MatMul(x, w)  y = Add(a, b)  z = MatMul(x, v) }}"""
H = RNG.standard_normal((2, 50, K)).astype(np.float32)
H[0, 3] *= 80  # one massive token
H[1, 7] = 0  # and one of zeros
SCHEME = Scheme(PER_CHANNEL, UNSIGNED, by_token=True)


def graph() -> Graph:
    return graph_with_weights(TEXT, w=W, b=B, v=V)


def seen(h: np.ndarray, names: str = "wv", *, by_token: bool = False) -> QuantizationFacts:
    x = np.where(h > 0, h, np.expm1(np.minimum(h, 0))).reshape(-1, K)
    if by_token:
        x = x / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12)
    found = {name: Observation.of(x) for name in names}
    found |= {f"{name}_of_normalized": Observation.of(x) for name in names}
    return QuantizationFacts(Statistics(found, "min-max", "a test", 1))


def test_the_numbers_stay():
    before, after = graph(), graph()
    (record,) = run_passes(after, [NormalizeTokens(seen(H), scheme=SCHEME)])
    assert record.modified
    check_graph(after, "normalizing")
    assert [value.name for value in after.graph.outputs] == ["y", "z"]
    assert {node.op_type for node in after.graph} >= {"ReduceMax", "Div", "Mul"}
    assert len([node for node in after.graph if node.op_type == "Div"]) == 1  # for both products
    found = deviations(GraphRunner(after).run({"h": H}), GraphRunner(before).run({"h": H}))
    # A division and a product more, and sums of 64 terms.
    tolerance = Tolerance.for_precision("fp32", depth=4, contraction=K)
    assert all(deviation.within(tolerance) for deviation in found.values()), found


def test_each_token_is_closer_for_it():
    exact = GraphRunner(graph()).run({"h": H})["z"]
    size = np.linalg.norm(exact, axis=-1)
    errors = []
    for passes in ((), (NormalizeTokens(seen(H), scheme=SCHEME),)):
        rounded = graph()
        run_passes(rounded, passes)
        facts = seen(H, by_token=bool(passes))
        run_passes(rounded, [InsertQdq(facts, scheme=SCHEME)])
        found = GraphRunner(rounded).run({"h": H})["z"]
        shown = size > 0
        errors.append(np.median(np.linalg.norm(found - exact, axis=-1)[shown] / size[shown]))
    assert errors[1] < 0.1 * errors[0]


def test_a_second_run_changes_nothing():
    after = graph()
    run_passes(after, [NormalizeTokens(seen(H), scheme=SCHEME)])
    (again,) = run_passes(after, [NormalizeTokens(seen(H, by_token=True), scheme=SCHEME)])
    assert not again.modified


@pytest.mark.parametrize(
    ("facts", "given", "why"),
    [
        (QuantizationFacts(), {}, "there was no calibration"),
        (seen(H, "q"), {}, "have nothing of what"),
        (seen(H), {"keep": ("*",)}, "do not quantize it"),
        (seen(H), {"most": 1e9}, "lose no more than"),
        (seen(np.sign(H)), {"most": 0.0}, "would lose"),
    ],
    ids=["no statistics", "others", "kept", "little", "no gain"],
)
def test_what_is_left_alone_and_why(facts: QuantizationFacts, given: dict, why: str):
    assert_miss(NormalizeTokens(facts, scheme=SCHEME, **given), graph(), why)


def test_a_gemm_with_its_bias_is_left():
    text = f"""g (float[B,{K}] h, float[{K},{N}] w, float[{N}] b) => (float[B,{N}] y)
        {{ x = Elu(h)  y = Gemm(x, w, b) }}"""
    assert_miss(
        NormalizeTokens(seen(H), scheme=SCHEME), graph_with_weights(text, w=W, b=B), "a Gemm adds"
    )
