"""Lets attention masks hide with the lowest number but one, not with the lowest."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.attention.joined_mask import above_lowest
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter

_MASK = 3


@dataclass(frozen=True)
class LegalizeLowestMask(Pass):
    """Raise the lowest number of a mask's dtype to the next one.

    before:  Attention(query, key, value, Where(seen, bias, -3.4028235e38))
    after:   Attention(query, key, value, Where(seen, bias, -3.4028233e38))

    Where a finite number hides all keys of a query, torch and the standard (ONNX Attention-24) give
    all of them the same attention weight. onnxruntime 1.32's CPU kernel takes the lowest number for
    minus infinity, and gives zeros. A hidden key beside a visible one has an attention weight of 0
    both ways. Needs: nothing. Leaves alone: boolean masks, minus infinity, and other readers of the
    mask: the nodes from its number on are copied.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(graph.graph)):
            if node.op_type != "Attention" or node.domain != "" or len(node.inputs) <= _MASK:
                continue
            mask = node.inputs[_MASK]
            if mask is None or mask.dtype is None or not mask.dtype.is_floating_point():
                continue
            raised = above_lowest(Inserter(node), mask)
            if raised is not mask:
                node.replace_input_with(_MASK, raised)
                changed = True
        return changed
