"""Attention that keeps its own cache becomes Attention over a concatenated one."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.base import Graph, Pass

_PAST_KEY, _PAST_VALUE = 4, 5
_PRESENT_KEY, _PRESENT_VALUE = 1, 2


@dataclass(frozen=True)
class LegalizeAttentionPast(Pass):
    """Concatenate past keys and values before an Attention instead of inside it.

    Before, with keys [B, H, T, D] and a past [B, H, P, D]::

        y, present_key, present_value = Attention(q, k, v, mask, past_key, past_value)

    After::

        present_key   = Concat[axis=2](past_key, k)
        present_value = Concat[axis=2](past_value, v)
        y             = Attention(q, present_key, present_value, mask)

    Needs: nothing. Leaves alone: Attention without a past; Attention of three axes, whose heads
    are not split yet; Attention that is causal and has no mask, whose alignment would change
    (`LegalizeCausalMask` writes that mask out, and runs first).
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [n for n in ir.traversal.RecursiveGraphIterator(graph.graph) if _has_past(n)]
        for node in found:
            _move_past_out(node)
        return bool(found)


def _has_past(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Attention" or len(node.inputs) <= _PAST_VALUE:
        return False
    if node.inputs[_PAST_KEY] is None or node.attributes.get_int("is_causal", 0):
        return False
    return node.attributes.get_int("q_num_heads", 0) == 0


def _move_past_out(node: ir.Node) -> None:
    for index, past, present in (
        (1, _PAST_KEY, _PRESENT_KEY),
        (2, _PAST_VALUE, _PRESENT_VALUE),
    ):
        joined = ir.node("Concat", [node.inputs[past], node.inputs[index]], {"axis": 2})
        result, shown = joined.outputs[0], _output(node, present)
        node.prepend(joined)
        like = shown if shown is not None and shown.shape is not None else None
        result.type = node.inputs[index].type
        result.shape = like.shape if like is not None else None
        node.replace_input_with(past, None)
        node.replace_input_with(index, result)
        if shown is not None:
            name = shown.name
            ir.convenience.replace_all_uses_with(shown, result, replace_graph_outputs=True)
            shown.name, result.name = f"{name}_unused", name
    assert node.graph is not None
