"""The mean error of rounded weights goes into the bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.testing import assert_miss, graph_with_weights

RNG = np.random.default_rng(0)
K, N = 64, 16
W = RNG.standard_normal((K, N)).astype(np.float32)
B = RNG.standard_normal(N).astype(np.float32)
X = RNG.normal(2.0, 1.0, (500, K)).astype(np.float32)  # far from a mean of zero
ADDED = f"""g (float[B,{K}] x, float[{K},{N}] w, float[{N}] b) => (float[B,{N}] y)
    {{ m = MatMul(x, w)  y = Add(m, b) }}"""
GEMM = f"""g (float[B,{K}] x, float[{N},{K}] w, float[{N}] b) => (float[B,{N}] y)
    {{ y = Gemm<transB=1>(x, w, b) }}"""
INT4 = Scheme(WeightGrid(ir.DataType.UINT4, 64))


def facts(**seen: Observation) -> QuantizationFacts:
    return QuantizationFacts(Statistics(seen, "min-max", "a test", 1))


OBSERVATION = Observation.of(X)
SEEN = facts(w=OBSERVATION)


def mean_errors(graph: Graph, *passes) -> np.ndarray:
    exact = GraphRunner(graph.clone()).run({"x": X})["y"]
    run_passes(graph, passes)
    return (GraphRunner(graph).run({"x": X})["y"] - exact).mean(axis=0)


def test_the_mean_error_goes_for_each_form_of_a_bias():
    for text, weight in ((ADDED, W), (GEMM, np.ascontiguousarray(W.T))):
        insert = InsertQdq(scheme=INT4)
        plain = mean_errors(graph_with_weights(text, w=weight, b=B), insert)
        correct = CorrectBiases(scheme=INT4, facts=SEEN)
        graph = graph_with_weights(text, w=weight, b=B)
        mended = mean_errors(graph, correct, InsertQdq(scheme=INT4))
        assert np.abs(plain).max() > 0.05
        assert np.abs(mended).max() < 1e-4  # what fp32 sums of 500 rows leave
        (again,) = run_passes(graph, [correct])
        assert not again.modified


def test_what_is_left_alone_and_why():
    graph = graph_with_weights(ADDED, w=W, b=B)
    assert_miss(CorrectBiases(), graph, "no calibration")
    assert_miss(CorrectBiases(facts=SEEN, keep=("model",)), graph, "kept in float")
    other = facts(v=OBSERVATION)
    assert_miss(CorrectBiases(facts=other), graph, "no means of what 'w' multiplies")
    text = f"g (float[B,{K}] x, float[{K},{N}] w) => (float[B,{N}] y) {{ y = MatMul(x, w) }}"
    assert_miss(CorrectBiases(facts=SEEN), graph_with_weights(text, w=W), "no constant bias")
