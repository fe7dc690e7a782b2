"""Integers in a Graph: the forms, what shares what, what is left alone, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import UnsupportedError
from omnigraph.graph import MODULE_KEY, Graph, count_ops
from omnigraph.lowering import find_target
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers
from omnigraph.passes.analysis.quantization.scheme import FourBits
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.testing import assert_miss, graph_text, graph_with_weights

#: Schemes by precision.
SCHEMES = find_target("onnx").schemes
RNG = np.random.default_rng(0)
TERMS, CHANNELS = 70, 12
WEIGHT = RNG.standard_normal((TERMS, CHANNELS)).astype(np.float32)
X = RNG.normal(0.3, 1, (2, 5, TERMS)).astype(np.float32)
ONE = f"""g (float[B,T,{TERMS}] x, float[{TERMS},{CHANNELS}] w) => (float[B,T,{CHANNELS}] y)
    {{ y = MatMul(x, w) }}"""
THREE = f"""g (float[B,T,{TERMS}] x, float[{TERMS},{CHANNELS}] q, float[{TERMS},{CHANNELS}] k,
    float[{CHANNELS},{TERMS}] v)
    => (float[B,T,{CHANNELS}] a, float[B,T,{CHANNELS}] b, float[N,{CHANNELS}] c)
    {{ a = MatMul(x, q)  b = MatMul(x, k)  s = Constant<value_ints=[-1,{TERMS}]>()
       f = Reshape(x, s)  c = Gemm<transB=1>(f, v) }}"""
TIED = """g (int64[B,T] ids, float[40,32] table) => (float[B,T,40] y)
    { h = Gather(table, ids)  n = Tanh(h)  t = Transpose<perm=[1,0]>(table)  y = MatMul(n, t) }"""


def seen(*names: str, low: float = -4.0, high: float = 5.0) -> QuantizationFacts:
    one = Observation.of(np.array([[low], [high]], np.float32))
    return QuantizationFacts(Statistics(dict.fromkeys(names, one), "min-max", "a test", 1))


def numbers(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    check_graph(graph, "test")
    return GraphRunner(graph).run(feeds)


def names_layers(graph: Graph) -> Graph:
    """Each node of a layer of its own: the name of its output."""
    for node in graph.graph:
        node.metadata_props[MODULE_KEY] = node.outputs[0].name or ""
    return graph


def round_to(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """To 256 codes from ``low`` to ``high``, zero among them."""
    scale = np.float32((high - low) / 255)
    zero = np.clip(round(-low / scale), 0, 255)
    return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale


def round_channels(weight: np.ndarray) -> np.ndarray:
    """To codes of -127 to 127 for each output channel."""
    scale = np.abs(weight).max(axis=0) / 127
    return np.rint(weight / scale) * scale


def test_activations_and_weights_are_rounded_as_written_by_hand():
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(facts=seen("w"))])
    ops = count_ops(graph)
    assert (ops["QuantizeLinear"], ops["DequantizeLinear"], ops["MatMul"]) == (1, 2, 1)
    expected = round_to(X, -4.0, 5.0) @ round_channels(WEIGHT)
    # Sums of 70 terms in fp32, in another order.
    np.testing.assert_allclose(numbers(graph, {"x": X})["y"], expected, rtol=0, atol=2e-5)


def test_weights_are_stored_as_integers_and_no_float_is_left():
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(facts=seen("w"))])
    stored = {name: value.dtype for name, value in graph.graph.initializers.items()}
    assert "w" not in stored and stored["w_int8"] == ir.DataType.INT8
    held = sum(v.const_value.nbytes for v in graph.graph.initializers.values())
    assert held < WEIGHT.nbytes / 4 + 4 * CHANNELS + 16


@pytest.mark.parametrize("precision", ["int8-weights", "int4-weights"])
def test_weights_alone_leave_the_activation_as_it_is(precision: str):
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(scheme=SCHEMES[precision])])
    linear = next(node for node in graph.graph if node.op_type == "MatMul")
    assert linear.inputs[0] is graph.graph.inputs[0]
    error = numbers(graph, {"x": X})["y"] - X @ WEIGHT
    size = np.sqrt(np.mean(np.square(X @ WEIGHT)))
    # A step over √12, of weights whose range is about 6 deviations: 255 steps, or 15.
    assert np.sqrt(np.mean(np.square(error))) < size * 8 / (255 if "8" in precision else 15) / 3.4


def test_dynamic_ranges_are_those_of_each_call():
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(scheme=SCHEMES["int8-dynamic"])])
    for size in (0.01, 1.0, 100.0):
        x = X * np.float32(size)
        expected = round_to(x, min(x.min(), 0), max(x.max(), 0)) @ round_channels(WEIGHT)
        found = numbers(graph, {"x": x})["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-2 * size)
        assert np.abs(found - x @ WEIGHT).max() > 0


@pytest.mark.parametrize("target", ["onnx", "openvino", "tensorrt"])
def test_every_scheme_gives_a_graph_that_runs_and_is_near(target: str):
    for precision, scheme in find_target(target).schemes.items():
        if scheme is None:
            continue
        graph = graph_with_weights(ONE, w=WEIGHT)
        (record,) = run_passes(graph, [InsertQdq(facts=seen("w"), scheme=scheme)])
        assert record.modified
        found, exact = numbers(graph, {"x": X})["y"], X @ WEIGHT
        error = np.sqrt(np.mean(np.square(found - exact)) / np.mean(np.square(exact)))
        four = scheme.weights.dtype.bitwidth == 4
        eighth = precision == "fp8"  # three bits of mantissa: 2^-4 / √3 for each of both factors
        assert 0 < error < (0.15 if four else 0.07 if eighth else 0.03), precision


def test_products_of_one_activation_share_its_quantization():
    graph = graph_with_weights(
        THREE,
        q=WEIGHT,
        k=WEIGHT[::-1].copy(),
        v=np.ascontiguousarray(WEIGHT.T),
    )
    run_passes(graph, [InsertQdq(facts=seen("q", "k", "v"))])
    assert count_ops(graph)["QuantizeLinear"] == 2  # x, and x reshaped
    found = numbers(graph, {"x": X})
    rounded = round_to(X, -4.0, 5.0)
    np.testing.assert_allclose(found["a"], rounded @ round_channels(WEIGHT), rtol=0, atol=2e-5)
    wide = rounded.reshape(-1, TERMS) @ round_channels(WEIGHT)
    np.testing.assert_allclose(found["c"], wide, rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["int8", "int8-weights", "int4-weights"])
def test_a_table_that_embeddings_and_logits_share_is_stored_once(precision: str):
    table = RNG.standard_normal((40, 32)).astype(np.float32)
    ids = {"ids": np.array([[3, 0, 39], [7, 7, 1]])}
    graph = graph_with_weights(TIED, table=table)
    exact = GraphRunner(graph.clone()).run(ids)["y"]
    run_passes(graph, [InsertQdq(scheme=SCHEMES[precision], facts=seen("table", low=-1, high=1))])
    held = [v for v in graph.graph.initializers.values() if v.shape == ir.Shape([40, 32])]
    assert [value.dtype for value in held] == [ir.DataType.INT8]
    assert count_ops(graph)["Gather"] == 2  # of the rows, and of their scales
    found = numbers(graph, ids)["y"]
    assert np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


def test_choices_and_layers_that_are_kept():
    arrays = {"q": WEIGHT, "k": WEIGHT[::-1].copy(), "v": np.ascontiguousarray(WEIGHT.T)}
    graph = names_layers(graph_with_weights(THREE, **arrays))
    choices = {"a": SCHEMES["int4-weights"], "b": None}
    (record,) = run_passes(graph, [InsertQdq(facts=replace(seen(*arrays), choices=choices))])
    types = {name: v.dtype for name, v in graph.graph.initializers.items() if len(v.shape) == 2}
    assert types["q_uint4"] == ir.DataType.UINT4 and types["v_int8"] == ir.DataType.INT8
    assert types["k"] == ir.DataType.FLOAT
    assert [f.reason for f in record.findings if f.reason] == ["the layer is kept in float"]
    graph = names_layers(graph_with_weights(THREE, **arrays))
    run_passes(graph, [InsertQdq(facts=seen(*arrays), keep=("[ab]",))])
    assert {linear.layer for linear in linear_layers(graph)} == {"a", "b"}


def test_a_second_run_changes_nothing():
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(facts=seen("w"))])
    once = graph_text(graph)
    (record,) = run_passes(graph, [InsertQdq(facts=seen("w"))])
    assert not record.modified and graph_text(graph) == once


def test_what_is_left_alone_and_why():
    graph = graph_with_weights(ONE, w=WEIGHT)
    assert_miss(InsertQdq(), graph, "no calibration")
    assert_miss(InsertQdq(facts=seen("other")), graph, "nothing of what 'w' multiplies")
    text = "g (float[B,8] x, float[8,4] w) => (float[B,4] y) { y = MatMul(x, w) }"
    short = graph_with_weights(text, w=WEIGHT[:8, :4].copy())
    assert_miss(InsertQdq(facts=seen("w")), short, "only 8 terms")
    tied = names_layers(graph_with_weights(TIED, table=WEIGHT[:40, :8].repeat(4, 1)[:40]))
    both = InsertQdq(scheme=SCHEMES["int8-weights"], facts=QuantizationFacts(choices={"y": None}))
    assert_miss(both, tied, "shares its table with a product that stays in float")


def test_activations_that_are_never_anything_but_zero():
    graph = graph_with_weights(ONE, w=WEIGHT)
    run_passes(graph, [InsertQdq(facts=seen("w", low=0.0, high=0.0))])
    assert not numbers(graph, {"x": np.zeros_like(X)})["y"].any()


def test_a_precision_that_the_target_has_no_scheme_of():
    with pytest.raises(UnsupportedError, match="'a' to 'fp8': expected float or int8"):
        find_target("onnx").layer_schemes({"a": "fp8"}, FourBits())
    found = find_target("onnx").layer_schemes({"a": "float", "b": "int4-weights"}, FourBits(32))
    assert found["a"] is None and found["b"].weights.block == 32
