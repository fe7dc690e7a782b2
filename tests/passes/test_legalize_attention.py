"""The three passes that make any Attention one that a kernel takes, or none at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import MODULE_KEY, count_ops
from omnigraph.passes.base import Pass
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.decompose_attention import DecomposeAttention
from omnigraph.passes.legalize_attention_past import LegalizeAttentionPast
from omnigraph.passes.legalize_causal_mask import LegalizeCausalMask

FLOAT, BOOL = ir.DataType.FLOAT, ir.DataType.BOOL
HEADS = 4
TENSORS = ("q", "k", "v", "mask", "past_key", "past_value")


def attention(
    *,
    key_heads: int = HEADS,
    size: int = 8,
    value_size: int | None = None,
    keys: str = "t",
    mask: ir.DataType | None = None,
    past: bool = False,
    outputs: tuple[str, ...] = ("y",),
    **attributes: Any,
) -> ir.Model:
    """A Graph of one Attention, its lengths open."""
    value_size = value_size or size
    shapes: dict[str, tuple[ir.DataType, list[Any]]] = {
        "q": (FLOAT, ["b", HEADS, "t", size]),
        "k": (FLOAT, ["b", key_heads, keys, size]),
        "v": (FLOAT, ["b", key_heads, keys, value_size]),
    }
    if mask is not None:
        shapes["mask"] = (mask, ["b", 1, "t", "all" if past else keys])
    if past:
        shapes["past_key"] = (FLOAT, ["b", key_heads, "p", size])
        shapes["past_value"] = (FLOAT, ["b", key_heads, "p", value_size])
    values = {
        name: ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        for name, (dtype, shape) in shapes.items()
    }
    inputs = [values.get(name) for name in TENSORS[: 6 if past else 4 if mask else 3]]
    node = ir.node("Attention", inputs, attributes, num_outputs=len(outputs), name="attention")
    node.metadata_props[MODULE_KEY] = "attention"
    named = []
    for value, name in zip(node.outputs, outputs, strict=True):
        value.name = name
        if name:
            value.type = ir.TensorType(FLOAT)
            value.shape = ir.Shape([None] * 4)
            named.append(value)
    graph = ir.Graph(
        list(values.values()), named, nodes=[node], opset_imports={"": 24}, name="attention"
    )
    return ir.Model(graph, ir_version=10)


def feeds(graph: ir.Model, **lengths: int) -> dict[str, np.ndarray]:
    """Random tensors; a mask that hides one whole row of the second in the batch."""
    rng, found = np.random.default_rng(0), {}
    sizes = {"b": 2, "t": 5, "s": 7, "p": 3, "all": 8, **lengths}
    for value in graph.graph.inputs:
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        found[value.name] = rng.normal(size=shape).astype(np.float32)
        if value.dtype == BOOL:
            found[value.name] = found[value.name] > -0.5
            found[value.name][1, :, 2] = False
    return found


def check(pass_: Pass, graph: ir.Model, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Apply a pass that must match: legal, complete at once, the same numbers as the standard's."""
    expected = ReferenceEvaluator(ir.to_proto(graph)).run(None, given)
    assert pass_(graph).modified
    assert not pass_(graph).modified
    proto = ir.to_proto(graph)
    onnx.checker.check_model(proto, full_check=True)
    names = [output.name for output in proto.graph.output]
    found = dict(zip(names, ReferenceEvaluator(proto).run(None, given), strict=True))
    for (name, array), reference in zip(found.items(), expected, strict=True):
        np.testing.assert_allclose(array, reference, atol=2e-6, err_msg=name)
    return found


# The past -----------------------------------------------------------------------------------------


def test_past_is_concatenated() -> None:
    graph = attention(past=True, outputs=("y", "present_key", "present_value"))
    check(LegalizeAttentionPast(), graph, feeds(graph))
    assert count_ops(graph) == {"Concat": 2, "Attention": 1}
    node = graph.graph[-1]
    assert len(node.outputs) == 1
    assert [v.name for v in node.inputs if v] == ["q", "present_key", "present_value"]


def test_empty_past_is_concatenated() -> None:
    graph = attention(past=True, mask=BOOL, outputs=("y", "present_key", "present_value"))
    check(LegalizeAttentionPast(), graph, feeds(graph, p=0, all=5))


def test_attention_without_past_stays() -> None:
    assert not LegalizeAttentionPast()(attention(mask=BOOL)).modified


def test_causal_attention_with_past_waits_for_its_mask() -> None:
    graph = attention(past=True, is_causal=1, outputs=("y", "present_key", "present_value"))
    assert not LegalizeAttentionPast()(graph).modified
    given = feeds(graph)
    check(LegalizeCausalMask(), graph, given)
    check(LegalizeAttentionPast(), graph, given)


# The causal flag ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [BOOL, FLOAT])
def test_causal_flag_beside_a_mask_joins_it(mask: ir.DataType) -> None:
    graph = attention(mask=mask, is_causal=1)
    check(LegalizeCausalMask(), graph, feeds(graph))
    node = graph.graph[-1]
    assert "is_causal" not in node.attributes


def test_causal_flag_of_unequal_lengths_becomes_a_mask() -> None:
    graph = attention(keys="s", is_causal=1)
    given = feeds(graph)
    found = check(LegalizeCausalMask(), graph, given)
    onnxruntime_found = GraphRunner(graph).run(given)
    np.testing.assert_allclose(onnxruntime_found["y"], found["y"], atol=2e-6)


def test_square_causal_attention_stays() -> None:
    assert not LegalizeCausalMask()(attention(is_causal=1)).modified


def test_attention_that_is_not_causal_stays() -> None:
    assert not LegalizeCausalMask()(attention(keys="s", mask=BOOL)).modified


# What has no kernel -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"mask": FLOAT},
        {"mask": BOOL},
        {"mask": BOOL, "keys": "s"},
        {"mask": BOOL, "key_heads": 2},
        {"key_heads": 1, "keys": "s"},
        {"softcap": 2.0, "mask": FLOAT},
    ],
    ids=str,
)
def test_small_heads_are_written_out(options: dict[str, Any]) -> None:
    graph = attention(**options)
    given = feeds(graph)
    found = check(DecomposeAttention(smallest_head=9), graph, given)
    assert "Attention" not in count_ops(graph)
    np.testing.assert_allclose(GraphRunner(graph).run(given)["y"], found["y"], atol=2e-6)
    if options.get("mask") == BOOL:
        assert not found["y"][1, :, 2].any()  # the row that is hidden entirely


@pytest.mark.parametrize(("mode", "softcap"), [(0, 0.0), (1, 2.0), (2, 2.0), (3, 2.0)])
def test_scores_that_are_an_output_are_kept(mode: int, softcap: float) -> None:
    options = {"softcap": softcap, "qk_matmul_output_mode": mode}
    graph = attention(outputs=("y", "", "", "scores"), **options)
    check(DecomposeAttention(), graph, feeds(graph))


def test_values_of_another_size_are_written_out() -> None:
    graph = attention(value_size=12)
    check(DecomposeAttention(), graph, feeds(graph))


@pytest.mark.parametrize("mask", [None, BOOL, FLOAT])
def test_written_out_in_fp16_without_a_nan(mask: ir.DataType | None) -> None:
    graph = attention(mask=mask)
    given = feeds(graph)
    expected = GraphRunner(graph).run(given)["y"]
    DecomposeAttention(smallest_head=9)(graph)
    ConvertPrecision("fp16")(graph)
    softmax = next(n for n in graph.graph if n.op_type == "Softmax")
    assert softmax.outputs[0].dtype == FLOAT
    np.testing.assert_allclose(GraphRunner(graph).run(given)["y"], expected, atol=4e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 4}, "heads of 4, outside 9 to 256"),
        ({"size": 264}, "heads of 264, outside 9 to 256"),
        ({"size": 16, "value_size": 8}, "values of 8 and queries of 16"),
        ({"size": 16, "softcap": 5.0}, "a softcap"),
        ({"size": 16}, None),
    ],
)
def test_reason(options: dict[str, Any], reason: str | None) -> None:
    graph = attention(**options)
    pass_ = DecomposeAttention(smallest_head=9)
    assert pass_.why_no_kernel(graph.graph[0]) == reason
    assert pass_(graph).modified == (reason is not None)


def test_queries_that_are_keys_are_written_out_where_that_has_no_kernel() -> None:
    graph = attention()
    node = graph.graph[0]
    copy = ir.node("Identity", [node.inputs[0]])
    copy.outputs[0].type, copy.outputs[0].shape = node.inputs[0].type, node.inputs[0].shape
    node.prepend(copy)
    node.replace_input_with(1, copy.outputs[0])
    assert not DecomposeAttention()(graph).modified
    check(DecomposeAttention(separate=True), graph, feeds(graph))


def test_causal_attention_is_not_written_out() -> None:
    assert not DecomposeAttention(smallest_head=9)(attention(is_causal=1)).modified
