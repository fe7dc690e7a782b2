"""EmulateGroupQuantization: activations rounded to 8 bits by groups, as runtimes do it."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.graph import Graph
from omnigraph.lowering import find_target
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_group_quantization import EmulateGroupQuantization
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.remove_rounding import RemoveRounding
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)


def quantized(terms: int, precision: str) -> tuple[Graph, np.ndarray]:
    """A linear layer with stored weights, and its weights as they are computed with."""
    weight = RNG.standard_normal((terms, 24)).astype(np.float32)
    text = f"""g (float[A,B,{terms}] x, float[{terms},24] w) => (float[A,B,24] y) {{
        y = MatMul(x, w) }}"""
    graph = graph_with_weights(text, w=weight)
    run_passes(graph, [InsertQdq(scheme=find_target("onnx").schemes[precision])])
    identity = np.eye(terms, dtype=np.float32)[None]
    return graph, GraphRunner(graph).run({"x": identity})["y"][0]


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
@pytest.mark.parametrize(("terms", "group"), [(64, 16), (70, 32), (48, 128)])
def test_activations_are_rounded_by_groups(terms: int, group: int, precision: str):
    graph, weight = quantized(terms, precision)
    assert EmulateGroupQuantization(group)(graph).modified
    check_graph(graph, "emulate-group-quantization")
    x = RNG.standard_normal((2, 3, terms)).astype(np.float32)
    x[0, 0] = 0  # no step to divide by
    rounded = np.zeros_like(x)
    if precision == "int4-weights":
        group = min(64, terms)  # that of the weights' scales
    for start in range(0, terms, group):
        part = x[..., start : start + group]
        step = np.maximum(np.abs(part).max(-1, keepdims=True) / np.float32(127), 1e-38)
        rounded[..., start : start + group] = np.rint(part / step) * step
    found = GraphRunner(graph).run({"x": x})["y"]
    np.testing.assert_allclose(found, rounded @ weight, rtol=1e-4, atol=1e-4)
    assert not EmulateGroupQuantization(group)(graph).modified


def test_activations_that_the_graph_quantizes_are_left_alone():
    graph, _ = quantized(64, "int8-dynamic")
    assert not EmulateGroupQuantization(32)(graph).modified
    RemoveRounding()(graph)
    assert EmulateGroupQuantization(32)(graph).modified


def test_float_weights_are_left_alone():
    text = "g (float[A,32] x, float[32,8] w) => (float[A,8] y) { y = MatMul(x, w) }"
    graph = graph_with_weights(text, w=np.ones((32, 8), np.float32))
    assert not EmulateGroupQuantization(32)(graph).modified
