"""TensorScatter becomes ScatterElements, with the rows written out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_cases import node_tests

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import OPSET, count_ops
from omnigraph.passes.legalize_tensor_scatter import LegalizeTensorScatter
from omnigraph.testing import assert_pass, graph_from_text

PASS = LegalizeTensorScatter()
RNG = np.random.default_rng(0)


def scatter(attributes: str = "", start: str = ", start") -> ir.Model:
    return graph_from_text(
        "g (float[B,2,C,3] cache, float[B,2,T,3] update, int64[B] start) => (float[B,2,C,3] y) "
        f"{{ y = TensorScatter{attributes}(cache, update{start}) }}"
    )


def feeds(start: tuple[int, ...] = (0, 4)) -> dict[str, np.ndarray]:
    return {
        "cache": RNG.normal(size=(2, 2, 7, 3)).astype(np.float32),
        "update": RNG.normal(size=(2, 2, 3, 3)).astype(np.float32),
        "start": np.array(start),
    }


@pytest.mark.parametrize(
    ("attributes", "start", "rows"),
    [("", ", start", (0, 4)), ('<mode = "circular">', ", start", (2, 5)), ("", "", (0, 0))],
    ids=["linear", "circular", "from 0"],
)
def test_numbers(attributes: str, start: str, rows: tuple[int, int]) -> None:
    graph, given = scatter(attributes, start), feeds(rows)
    (expected,) = ReferenceEvaluator(ir.to_proto(graph)).run(None, given)
    assert PASS(graph).modified
    assert not PASS(graph).modified
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert "TensorScatter" not in count_ops(graph)
    assert count_ops(graph)["ScatterElements"] == 1
    np.testing.assert_array_equal(GraphRunner(graph).run(given)["y"], expected)


def test_the_cases_of_the_standard() -> None:
    cases = [
        case
        for case in node_tests()
        if [node.op_type for node in case.model.graph.node] == ["TensorScatter"]
    ]
    assert len(cases) >= 3
    for case in cases:
        model = onnx.ModelProto.FromString(case.model.SerializeToString())
        model.opset_import[0].version, model.ir_version = OPSET, 11
        graph = ir.from_proto(model)
        PASS(graph)
        for inputs, outputs in case.data_sets:
            names = [value.name for value in graph.graph.inputs]
            found = GraphRunner(graph).run(dict(zip(names, inputs, strict=True)))
            np.testing.assert_array_equal(*found.values(), *outputs)


def test_a_cache_of_unknown_rank_is_left_alone() -> None:
    graph = scatter()
    graph.graph[0].inputs[0].shape = None
    assert not PASS(graph).modified


def test_other_scatters_are_left_alone() -> None:
    graph = graph_from_text(
        "g (float[N] x, int64[M] i, float[M] u) => (float[N] y) { y = ScatterElements(x, i, u) }"
    )
    given = {"x": np.ones(5, "f4"), "i": np.array([1, 3]), "u": np.zeros(2, "f4")}
    assert_pass(PASS, graph, None, given)
