"""Which Graphs are legal, what runs them, and how many roundings they make."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graph_checks import EXACT, graph_from_text

from omnigraph.contract.external_weights import tensor_bytes, weights_elsewhere
from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    compare_graph,
    longest_contraction,
    proto_without_weights,
    rounding_depth,
)
from omnigraph.contract.tolerance import Tolerance
from omnigraph.errors import ContractError, GraphError
from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph

LAYER = """g (float[N,4] x, float[4,8] w, float[8] b) => (float[N,8] y) {
    product = MatMul(x, w)
    y = Add(product, b)
}"""


def layer(dtype: type = np.float32, inner: int = 4, outer: int = 8) -> Graph:
    """A Graph with the weights w [K, M] and b [M]."""
    rng = np.random.default_rng(0)
    text = LAYER.replace("4]", f"{inner}]").replace("[4,8]", f"[{inner},{outer}]")
    graph = graph_from_text(text.replace("8]", f"{outer}]"))
    add_weight(graph, "w", rng.standard_normal((inner, outer)).astype(dtype))
    add_weight(graph, "b", rng.standard_normal(outer).astype(dtype))
    return graph


def add_weight(graph: Graph, name: str, array: np.ndarray) -> None:
    value = next(v for v in graph.graph.inputs if v.name == name)
    graph.graph.inputs.remove(value)
    value.const_value = ir.tensor(array, name=name)
    value.dtype = value.const_value.dtype
    graph.graph.register_initializer(value)


def weights(graph: Graph) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy() for n, v in graph.graph.initializers.items()}


# -- legality --------------------------------------------------------------------------------------


def wrong_opset(graph: Graph) -> None:
    graph.opset_imports[""] = 21


def no_opset(graph: Graph) -> None:
    del graph.opset_imports[""]


def no_module(graph: Graph) -> None:
    del list(graph.graph)[1].metadata_props[MODULE_KEY]


def unknown_op(graph: Graph) -> None:
    next(iter(graph.graph)).op_type = "MatrixProduct"


def unknown_domain(graph: Graph) -> None:
    graph.opset_imports["ai.somewhere"] = 1
    next(iter(graph.graph)).domain = "ai.somewhere"


def unknown_attribute(graph: Graph) -> None:
    next(iter(graph.graph)).attributes["speed"] = ir.AttrInt64("speed", 3)


def dangling_value(graph: Graph) -> None:
    nowhere = ir.Value(name="nowhere", type=ir.TensorType(ir.DataType.FLOAT))
    next(iter(graph.graph)).replace_input_with(0, nowhere)


def used_before_made(graph: Graph) -> None:
    first, second = graph.graph
    graph.graph.remove(second)
    graph.graph.insert_before(first, second)


def two_values_of_one_name(graph: Graph) -> None:
    next(iter(graph.graph)).outputs[0].name = "y"


def no_type(graph: Graph) -> None:
    graph.graph.outputs[0].type = None


def too_few_inputs(graph: Graph) -> None:
    next(iter(graph.graph)).resize_inputs(1)


ILLEGAL = {
    wrong_opset: "wrong opset: expected 24, found 21",
    no_opset: "wrong opset: expected 24, found none",
    no_module: "Add 'node_1' after fold-things has lost the module that it came from",
    unknown_op: "No Op registered for MatrixProduct",
    unknown_domain: "'node_0' of module 'model' after fold-things is of domain 'ai.somewhere'",
    unknown_attribute: "Unrecognized attribute: speed",
    dangling_value: "nowhere",
    used_before_made: "sorted",
    two_values_of_one_name: "single static assignment",
    no_type: "Output 'y' after fold-things has no dtype",
    too_few_inputs: "has input size 1 not in range",
}


def test_a_legal_graph_is_let_through():
    for dtype in (np.float32, np.float64):
        graph = layer()
        check_graph(graph, "trace")
        assert {array.dtype for array in weights(graph).values()} == {np.dtype(np.float32)}, dtype


@pytest.mark.parametrize("change", ILLEGAL, ids=lambda change: change.__name__)
def test_an_illegal_graph_is_refused_with_its_stage(change):
    graph = layer()
    change(graph)
    with pytest.raises(GraphError) as caught:
        check_graph(graph, "fold-things")
    message = str(caught.value)
    assert ILLEGAL[change] in message
    assert "after fold-things" in message
    assert "\nhint: " in message
    assert message.count("\n") == 1


def test_a_function_says_what_its_op_means():
    graph = layer()
    node = next(iter(graph.graph))
    graph.opset_imports["ai.omnigraph"] = 1
    node.domain, node.op_type = "ai.omnigraph", "Product"
    with pytest.raises(GraphError, match=r"ai\.omnigraph"):
        check_graph(graph, "trace")
    left, right = ir.Value(name="left"), ir.Value(name="right")
    body = ir.node("MatMul", [left, right])
    body.outputs[0].name = "product"
    body.metadata_props[MODULE_KEY] = "model"
    inside = ir.Graph([left, right], body.outputs, nodes=[body], opset_imports={"": 24})
    function = ir.Function("ai.omnigraph", "Product", "", graph=inside, attributes={})
    graph.functions[function.identifier()] = function
    check_graph(graph, "trace")
    x = np.ones((2, 4), np.float32)
    found = GraphRunner(graph).run({"x": x})["y"]
    np.testing.assert_allclose(found, x @ weights(graph)["w"] + weights(graph)["b"], rtol=1e-5)


def test_checking_leaves_the_weights_where_they_are():
    graph = layer(inner=64, outer=32)
    before = {name: array.ctypes.data for name, array in weights(graph).items()}
    check_graph(graph, "trace")
    proto = proto_without_weights(graph)
    assert {name: array.ctypes.data for name, array in weights(graph).items()} == before
    assert [entry.name for entry in proto.graph.input] == ["x", "w"]
    assert [tensor.name for tensor in proto.graph.initializer] == ["b"]  # small ones stay
    assert len(proto.SerializeToString()) < 2000


# -- running ---------------------------------------------------------------------------------------


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
    add_weight(graph, "w", array)
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
    add_weight(graph, "t", table)
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
    add_weight(graph, "w", codes.astype(dtype.numpy()))
    add_weight(graph, "one", np.array(1, np.float32))
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


# -- comparing -------------------------------------------------------------------------------------


def test_numbers_are_compared_over_all_input_sets():
    graph = layer()
    feeds = [{"x": np.full((n, 4), n, np.float32)} for n in (1, 3)]
    expected = [GraphRunner(graph).run(given) for given in feeds]
    compare_graph(graph, feeds, expected, EXACT, "pass 'fold-things'")
    expected[1]["y"][2, 1] += 1e-3
    with pytest.raises(ContractError) as caught:
        compare_graph(graph, feeds, expected, EXACT, "pass 'fold-things'")
    message = str(caught.value)
    assert "Output 'y' of program 'g' parted from the reference after pass 'fold-things'" in message
    assert "expected an error within 4.77e-07 rms and 3.81e-06 peak, found " in message
    assert "\nhint: " in message
    compare_graph(graph, feeds, expected, Tolerance(0.1, 0.1), "pass 'fold-things'")


# -- roundings and sums ----------------------------------------------------------------------------

DEPTHS = {
    "nothing": ("g (float[N] x) => (float[N] y) { y = Identity(x) }", 0),
    "one": ("g (float[N] x) => (float[N] y) { y = Add(x, x) }", 1),
    "a chain": ("g (float[N] x) => (float[N] y) { a = Add(x, x) b = Exp(a) y = Mul(b, x) }", 3),
    "the longer branch": (
        "g (float[N] x) => (float[N] y) { a = Exp(x) b = Sqrt(a) c = Tanh(x) y = Mul(b, c) }",
        3,
    ),
    "moves between": (
        "g (float[N] x) => (float[N] y) { a = Neg(x) b = Concat<axis = 0>(a, x) y = Relu(b) }",
        0,
    ),
    "integers": ("g (int64[N] x) => (int64[N] y) { a = Add(x, x) y = Mul(a, x) }", 0),
    "integers before": (
        "g (int64[N] x) => (float[N] y) { a = Add(x, x) b = Cast<to = 1>(a) y = Exp(b) }",
        1,
    ),
    "attention": (
        "g (float[B,2,T,8] q) => (float[B,2,T,8] y) { y = Attention(q, q, q) }",
        5,
    ),
    "a norm": (
        "g (float[N,8] x, float[8] s) => (float[N,8] y) { y = LayerNormalization(x, s) }",
        3,
    ),
}


@pytest.mark.parametrize("case", DEPTHS)
def test_roundings_on_the_longest_path(case: str):
    text, depth = DEPTHS[case]
    assert rounding_depth(graph_from_text(text)) == depth


SUMS = {
    "none": ("g (float[N] x) => (float[N] y) { y = Exp(x) }", 1),
    "a product": ("g (float[N,40] x, float[40,9] w) => (float[N,9] y) { y = MatMul(x, w) }", 40),
    "a product of many": (
        "g (float[N,3,40] x, float[3,40,9] w) => (float[N,3,9] y) { y = MatMul(x, w) }",
        40,
    ),
    "a turned weight": (
        """g (float[N,40] x, float[9,40] w) => (float[N,9] y) {
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(x, t)
        }""",
        40,
    ),
    "a product with a bias": (
        "g (float[N,40] x, float[40,9] w, float[9] b) => (float[N,9] y) { y = Gemm(x, w, b) }",
        40,
    ),
    "a product with a turned weight": (
        """g (float[N,40] x, float[9,40] w, float[9] b) => (float[N,9] y) {
            y = Gemm<transB = 1>(x, w, b)
        }""",
        40,
    ),
    "both turned": (
        """g (float[40,N] x, float[9,40] w) => (float[N,9] y) {
            y = Gemm<transA = 1, transB = 1>(x, w)
        }""",
        40,
    ),
    "the longest": (
        """g (float[N,40] x, float[40,90] w, float[90,5] v) => (float[N,5] y) {
            a = MatMul(x, w)
            y = MatMul(a, v)
        }""",
        90,
    ),
    "over an open dimension": (
        "g (float[B,S] x, float[B,S,T] v) => (float[B,B,T] y) { y = MatMul(x, v) }",
        64,
    ),
    "over an axis": (
        "g (float[N,7,30] x, int64[1] axes) => (float[N,7] y) "
        "{ y = ReduceSum<keepdims = 0>(x, axes) }",
        30,
    ),
    "over two axes that stay": (
        "g (float[N,7,30] x, int64[2] axes) => (float[N,1,1] y) { y = ReduceMean(x, axes) }",
        210,
    ),
    "over everything": (
        "g (float[N,3] x) => (float y) { y = ReduceMean<keepdims = 0>(x) }",
        192,
    ),
    "a convolution": (
        "g (float[N,6,T] x, float[4,6,5] k) => (float[N,4,U] y) { y = Conv(x, k) }",
        30,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_terms_of_the_longest_sum(case: str):
    text, terms = SUMS[case]
    assert longest_contraction(graph_from_text(text)) == terms


# -- weights beside the protobuf -------------------------------------------------------------------


def test_weights_come_back_whatever_happens():
    graph = layer(inner=64, outer=32)
    before = graph.graph.initializers["w"].const_value

    def move_and_fail() -> None:
        with weights_elsewhere(graph, lambda name, _: (f"{name}.bin", 128), least_bytes=1024):
            moved = graph.graph.initializers["w"].const_value
            assert isinstance(moved, ir.ExternalTensor)
            assert (moved.location, moved.offset, moved.length) == ("w.bin", 128, 64 * 32 * 4)
            assert graph.graph.initializers["b"].const_value.numpy().shape == (32,)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        move_and_fail()
    assert graph.graph.initializers["w"].const_value is before


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_the_bytes_of_a_tensor_are_those_that_onnx_stores(dtype):
    array = np.random.default_rng(6).integers(0, 2, (5, 3)).astype(dtype)
    assert bytes(tensor_bytes(ir.tensor(array))) == array.tobytes()
    assert bytes(tensor_bytes(ir.tensor(array.T))) == array.T.tobytes()
    assert bytes(tensor_bytes(ir.tensor(array[:0]))) == b""


def test_the_bytes_of_a_tensor_are_not_copied():
    array = np.arange(1000, dtype=np.float32)
    view = np.frombuffer(tensor_bytes(ir.tensor(array)), np.uint8)
    assert view.ctypes.data == array.ctypes.data
