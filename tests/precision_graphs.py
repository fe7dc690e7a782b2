"""Graphs from ONNX text to convert to a half type, and what holds of every conversion."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.testing import graph_from_signature

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def graph_of(text: str, **weights: np.ndarray) -> ir.Model:
    """A Graph of ONNX text, "inputs => outputs { nodes }", and named weights; all values typed."""
    return graph_from_signature(text, weights)


def dtypes(graph: ir.Model) -> dict[str, ir.DataType | None]:
    """The type of every value by name."""
    nodes = graph.graph.all_nodes()
    return {v.name: v.dtype for n in nodes for v in (*n.inputs, *n.outputs) if v is not None}


def convert(graph: ir.Model, precision: str = "fp16") -> ir.Model:
    """Convert, and check what holds for every conversion."""
    before = [(v.name, v.dtype) for v in (*graph.graph.inputs, *graph.graph.outputs)]
    assert ConvertPrecision(precision)(graph).modified
    assert [(v.name, v.dtype) for v in (*graph.graph.inputs, *graph.graph.outputs)] == before
    assert not ConvertPrecision(precision)(graph).modified
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    for node in graph.graph:
        if node.op_type == "Cast" and (source := node.inputs[0].producer()) is not None:
            pair = source.op_type == "Cast" and source.inputs[0].dtype == node.outputs[0].dtype
            assert not pair, "a cast undoes the one before it"
    return graph
