"""Which Graphs are legal, and which have the numbers of the reference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from linear_graphs import layer, weights

from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    compare_graph,
    proto_without_weights,
)
from omnigraph.contract.tolerance import Tolerance
from omnigraph.errors import ContractError, GraphError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.testing import EXACT

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
    assert "program 'g' differs from the reference after pass 'fold-things'" in message
    assert "expected an error within 4.77e-07 rms and 3.81e-06 peak, found " in message
    assert "\nhint: " in message
    compare_graph(graph, feeds, expected, Tolerance(0.1, 0.1), "pass 'fold-things'")
