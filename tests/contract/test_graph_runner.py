"""Graphs run as they stand: numbers, weights of any type, and errors that name the node."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from linear_graphs import layer, weights

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import GraphError
from omnigraph.graph import MODULE_KEY, SOURCE_KEY
from omnigraph.testing import graph_from_text, store_weights


@pytest.mark.parametrize("size", [4, 64], ids=["small", "large"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_it_computes_what_the_graph_says(size: int, rows: int):
    graph = layer(inner=size, outer=size)
    x = np.random.default_rng(1).standard_normal((rows, size)).astype(np.float32)
    found = GraphRunner(graph).run({"x": x})
    assert list(found) == ["y"]
    expected = x @ weights(graph)["w"] + weights(graph)["b"]
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-5)


def test_large_weights_are_used_where_they_are():
    graph = layer(inner=64, outer=32)
    runner = GraphRunner(graph)
    assert list(runner._weights) == ["w"]
    assert runner._weights["w"].data_ptr() == weights(graph)["w"].ctypes.data
    x = np.ones((1, 64), np.float32)
    before = runner.run({"x": x})["y"]
    weights(graph)["w"][:] *= 2
    after = runner.run({"x": x})["y"]
    bias = weights(graph)["b"]
    np.testing.assert_allclose(after - bias, 2 * (before - bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("inner", [4, 64], ids=["small", "large"])
def test_weights_of_half_precision(dtype, inner: int):
    text = """g (float[N,K] x, float16[K,32] w) => (float[N,32] y) {
        wide = Cast<to = 1>(w)
        y = MatMul(x, wide)
    }"""
    graph = graph_from_text(text.replace("K", str(inner)))
    array = np.random.default_rng(2).standard_normal((inner, 32)).astype(dtype)
    store_weights(graph, {"w": array})
    check_graph(graph, "convert-precision")
    x = np.random.default_rng(3).standard_normal((3, inner)).astype(np.float32)
    found = GraphRunner(graph).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ array.astype(np.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.bool_])
def test_tables_of_any_type(dtype):
    kind = {"int64": "int64", "int32": "int32", "uint8": "uint8", "bool": "bool"}
    text = f"""g (int64[N] i, {kind[np.dtype(dtype).name]}[2000] t)
        => ({kind[np.dtype(dtype).name]}[N] y) {{ y = Gather(t, i) }}"""
    graph = graph_from_text(text)
    table = (np.arange(2000) % 2).astype(dtype)
    store_weights(graph, {"t": table})
    index = np.array([1999, 0, 7])
    np.testing.assert_array_equal(GraphRunner(graph).run({"i": index})["y"], table[index])


@pytest.mark.parametrize("rows", [2, 63, 64], ids=["small", "large-odd", "large"])
@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.UINT4], ids=["int4", "uint4"])
def test_weights_of_four_bits(dtype: ir.DataType, rows: int):
    text = f"""g (float[N,{rows}] x, {dtype.name.lower()}[{rows},33] w, float one)
        => (float[N,33] y) {{ wide = DequantizeLinear(w, one) y = MatMul(x, wide) }}"""
    graph = graph_from_text(text)
    least = -8 if dtype == ir.DataType.INT4 else 0
    codes = np.random.default_rng(5).integers(least, least + 16, (rows, 33))
    store_weights(graph, {"w": codes.astype(dtype.numpy())})
    store_weights(graph, {"one": np.array(1, np.float32)})
    found = GraphRunner(graph).run({"x": np.eye(rows, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(found, codes)


def test_weights_in_a_file_are_mapped(tmp_path: Path):
    array = np.random.default_rng(4).standard_normal((64, 32)).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(b"head" * 16 + array.tobytes())
    graph = layer(inner=64, outer=32)
    graph.graph.initializers["w"].const_value = ir.ExternalTensor(
        "w.bin",
        64,
        array.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(array.shape),
        name="w",
        base_dir=tmp_path,
    )
    check_graph(graph, "trace")
    x = np.ones((2, 64), np.float32)
    found = GraphRunner(graph).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ array + weights(graph)["b"], rtol=1e-4, atol=1e-4)


def test_small_weights_in_a_file_are_read(tmp_path: Path):
    graph = layer()
    expected = GraphRunner(graph).run({"x": np.ones((2, 4), np.float32)})
    ir.save(graph, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    found = GraphRunner(ir.load(tmp_path / "model.onnx")).run({"x": np.ones((2, 4), np.float32)})
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_weight_that_is_turned_or_strided():
    array = np.random.default_rng(5).standard_normal((32, 64)).astype(np.float32)
    for turned in (array.T, np.repeat(array.T, 2, axis=0)[::2]):
        graph = layer(inner=64, outer=32)
        graph.graph.initializers["w"].const_value = ir.tensor(turned, name="w")
        x = np.ones((2, 64), np.float32)
        found = GraphRunner(graph).run({"x": x})["y"]
        np.testing.assert_allclose(found, x @ array.T + weights(graph)["b"], rtol=1e-4, atol=1e-4)


def test_a_graph_that_does_not_load_names_the_node_and_its_module():
    graph = graph_from_text("g (int8[N,4] x, int8[4,4] w) => (int8[N,4] y) { y = MatMul(x, w) }")
    node = next(iter(graph.graph))
    node.metadata_props[MODULE_KEY], node.metadata_props[SOURCE_KEY] = "encoder.up", "net.py:12"
    with pytest.raises(GraphError) as caught:
        GraphRunner(graph)
    message = str(caught.value)
    assert "onnxruntime does not load graph 'g'" in message
    assert "MatMul 'node_0' of module 'encoder.up' (net.py:12)" in message
    assert "\nhint: " in message
    assert caught.value.__cause__ is not None


def test_a_graph_that_fails_names_the_node_and_its_module():
    graph = graph_from_text(
        "g (float[N] x, int64[M] shape) => (float[A,B] y) { y = Reshape(x, shape) }"
    )
    next(iter(graph.graph)).metadata_props[MODULE_KEY] = "decoder.head"
    runner = GraphRunner(graph)
    assert runner.run({"x": np.ones(6, np.float32), "shape": np.array([2, 3])})["y"].shape == (2, 3)
    with pytest.raises(GraphError) as caught:
        runner.run({"x": np.ones(6, np.float32), "shape": np.array([4, 4])})
    message = str(caught.value)
    assert "Graph 'g' does not run in onnxruntime" in message
    assert "Reshape 'node_0' of module 'decoder.head'" in message
    assert "\nhint: " in message


def test_a_weight_can_be_an_output():
    graph = layer(inner=64, outer=32)
    graph.graph.outputs.append(graph.graph.initializers["w"])
    check_graph(graph, "trace")
    found = GraphRunner(graph).run({"x": np.ones((1, 64), np.float32)})
    np.testing.assert_array_equal(found["w"], weights(graph)["w"])
