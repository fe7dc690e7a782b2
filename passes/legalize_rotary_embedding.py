"""Expands caches and positions of RotaryEmbedding from a batch of one to its batch."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.position.rotary_caches import repeat_for_batch
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, input_at, nodes_of

_COS, _SIN, _POSITIONS = 1, 2, 3


@dataclass(frozen=True)
class LegalizeRotaryEmbedding(Pass):
    """Expand caches or positions of a RotaryEmbedding from a batch of one to its batch.

    Before, with x [B, H, T, D] and cos, sin [1, T, R/2]::

        y = RotaryEmbedding(x, cos, sin)

    After::

        y = RotaryEmbedding(x, Expand(cos, [B, 1, 1]), Expand(sin, [B, 1, 1]))

    and the same for positions [1, T]. The ONNX rule (RotaryEmbedding-23) is one row for each
    element of the batch. torch's exporter writes one row for all, which onnxruntime refuses.

    Needs: shapes of x and the caches. Leaves alone: a batch that is 1 for all inputs.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(nodes_of(graph, "RotaryEmbedding")):
            changed |= _repeat(graph, node)
        return changed


def _repeat(graph: Graph, node: ir.Node) -> bool:
    x = node.inputs[0]
    if x is None or x.shape is None or axis_size(x, 0) == 1:
        return False
    before, changed = Inserter(node), False
    by_position = input_at(node, _POSITIONS) is not None
    for index in (_POSITIONS,) if by_position else (_COS, _SIN):
        value = input_at(node, index)
        if value is not None and axis_size(value, 0) == 1:
            node.replace_input_with(index, repeat_for_batch(graph, before, value, x))
            changed = True
    return changed
