"""The ONNX project's own attention cases, written out, all become one Attention.

Every case of the standard's node tests whose name has "attention" and ends in "_expanded": an op
whose meaning is a function, inlined. What each becomes, or the reason why not, is a table here.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_cases import node_tests

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import MODULE_KEY, OPSET, Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.passes.pipelines import canonical

#: The cases that must become one Attention. The others are of LinearAttention: no softmax.
LEAST_FUSED = 93
#: By the coarsest type of the inputs: some 30 roundings of its unit, and 8 times that at most.
TOLERANCES = {
    "float32": Tolerance(rms=32 * 2.0**-24, peak=256 * 2.0**-24),
    "float16": Tolerance(rms=8 * 2.0**-11, peak=32 * 2.0**-11),
    "bfloat16": Tolerance(rms=8 * 2.0**-8, peak=32 * 2.0**-8),
}


@cache
def cases() -> dict[str, Any]:
    """The cases by name."""
    return {
        case.name: case
        for case in node_tests()
        if "attention" in case.name and case.name.endswith("_expanded")
    }


def loaded(case: Any) -> Graph:
    """A case as a Graph: its ops mean the same at our opset, and its shapes are inferred."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    (model.opset_import[0].version,) = (OPSET,)
    model.ir_version = 11
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"node_{position}"
        node.metadata_props[MODULE_KEY] = case.name
    return graph


def outputs(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers of a Graph; onnxruntime has no bfloat16, the reference evaluator has."""
    if any(array.dtype == ml_dtypes.bfloat16 for array in feeds.values()):
        names = [value.name or "" for value in graph.graph.outputs]
        found = ReferenceEvaluator(ir.to_proto(graph)).run(None, feeds)
        return dict(zip(names, found, strict=True))
    return GraphRunner(graph).run(feeds)


def check_case(name: str) -> str:
    """Fuse a case, compare its numbers with those expected and those before; what it became."""
    case = cases()[name]
    inputs, expected = case.data_sets[0]
    feeds = {v.name: np.asarray(a) for v, a in zip(case.model.graph.input, inputs, strict=True)}
    wanted = dict(zip((v.name for v in case.model.graph.output), expected, strict=True))
    kinds = {str(array.dtype) for array in feeds.values()}
    tolerance = next(t for kind, t in reversed(TOLERANCES.items()) if kind in kinds)
    graph = loaded(case)
    run_passes(graph, canonical())
    before = outputs(graph.clone(), feeds)
    *_, record = run_passes(graph, (FuseAttention(),))
    check_graph(graph, "fuse-attention")
    assert not run_passes(graph, (FuseAttention(),))[0].modified
    after = outputs(graph, feeds)
    for reference in (before, wanted):
        as_floats = {n: np.asarray(a, np.float64) for n, a in reference.items()}
        found = {n: np.asarray(a, np.float64) for n, a in after.items()}
        for output, deviation in deviations(found, as_floats).items():
            assert deviation.within(tolerance), (name, output, deviation)
    ops = count_ops(graph)
    if not record.findings:
        return "no softmax"
    (finding,) = record.findings
    assert (finding.became is not None) == (ops["Attention"] == 1 and not ops["Softmax"])
    return "one Attention" if finding.became else finding.reason or ""


def test_every_case_keeps_its_numbers_and_all_with_a_softmax_become_one_attention() -> None:
    table = Counter()
    for name in cases():
        became = check_case(name)
        table[became] += 1
        expected = "no softmax" if "linear_attention" in name else "one Attention"
        assert became == expected, name
    assert table["one Attention"] >= LEAST_FUSED
    assert set(table) <= {"one Attention", "no softmax"}


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("test_attention_4d_gqa_expanded", {"kv": 3}),
        ("test_attention_4d_gqa_with_past_and_present_expanded", {"kv": 3, "past": True}),
        ("test_attention_4d_softcap_expanded", {"softcap": 2.0}),
        ("test_attention_4d_scaled_expanded", {"scale": 0.01}),
        ("test_attention_3d_gqa_expanded", {"kv": 3}),
    ],
)
def test_what_the_attention_holds(name: str, holds: dict[str, Any]) -> None:
    graph = loaded(cases()[name])
    run_passes(graph, (*canonical(), FuseAttention()))
    (node,) = (node for node in graph.graph if node.op_type == "Attention")
    key = node.inputs[1]
    assert key is not None and key.shape is not None
    if "kv" in holds:
        assert key.shape[1] == holds["kv"]
    assert (len(node.inputs) == 6) == holds.get("past", False)
    for attribute in {"softcap", "scale"} & set(holds):
        assert node.attributes.get_float(attribute) == pytest.approx(holds[attribute])
