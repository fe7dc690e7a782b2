"""Expands attention masks to a row for each query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass

_MASK = 3


@dataclass(frozen=True)
class ExpandAttentionMask(Pass):
    """Expand a mask with one row for all queries to a row for each query.

    before:  Attention(query [B, H, T, D], key, value, mask [B, 1, 1, S])
    after:   Attention(query, key, value, Expand(mask, [1, 1, T, 1]))

    onnxruntime's Attention does not broadcast a mask over queries, which the standard allows (ONNX
    Attention-23, input attn_mask). Needs: a known number of rows in the mask. Leaves alone: masks
    with a row for each query, and a single query.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        expanded: dict[tuple[ir.Value, object], ir.Value] = {}
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(graph.graph)):
            if node.op_type != "Attention" or node.domain != "" or len(node.inputs) <= _MASK:
                continue
            query, mask = node.inputs[0], node.inputs[_MASK]
            if query is None or mask is None or not _one_row_for_many(query, mask):
                continue
            key = (mask, query.shape[2] if query.shape is not None else None)
            if key not in expanded:
                expanded[key] = _expand(node, query, mask)
            node.replace_input_with(_MASK, expanded[key])
            changed = True
        return changed


def _one_row_for_many(query: ir.Value, mask: ir.Value) -> bool:
    if query.shape is None or mask.shape is None or len(query.shape) != 4 or len(mask.shape) < 2:
        return False
    return mask.shape[-2] == 1 and query.shape[2] != 1


def _expand(node: ir.Node, query: ir.Value, mask: ir.Value) -> ir.Value:
    assert mask.shape is not None and query.shape is not None
    one = ir.tensor(np.array([1], np.int64))
    constant = ir.node("Constant", [], {"value": one})
    length = ir.node("Shape", [query], {"start": 2, "end": 3})
    shape = ir.node("Concat", [length.outputs[0], constant.outputs[0]], {"axis": 0})
    expand = ir.node("Expand", [mask, shape.outputs[0]])
    for made in (constant, length, shape):
        made.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    expand.outputs[0].type = mask.type
    expand.outputs[0].shape = ir.Shape([*mask.shape[:-2], query.shape[2], mask.shape[-1]])
    node.prepend([constant, length, shape, expand])
    return expand.outputs[0]
