"""Concatenates past keys and values outside of Attention."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass

_PAST_KEY, _PAST_VALUE = 4, 5
_PRESENTS = {_PAST_KEY: 1, _PAST_VALUE: 2}


@dataclass(frozen=True)
class LegalizeAttentionPast(Pass):
    """Concatenate past keys and values before an Attention instead of inside it.

    Before, with keys and values [B, H, T, D] and a past [B, H, P, D]::

        y, present_key, present_value = Attention(q, k, v, mask, past_key, past_value)

    After::

        present_key   = Concat[axis=2](past_key, k)
        present_value = Concat[axis=2](past_value, v)
        y             = Attention(q, present_key, present_value, mask)

    Needs: nothing. Leaves alone: Attention without a past; Attention of three axes, whose heads
    are not split yet; causal Attention, whose alignment would change (`LegalizeCausalMask` runs
    first and writes its mask out).
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [n for n in ir.traversal.RecursiveGraphIterator(graph.graph) if _has_past(n)]
        for node in found:
            for past, present in _PRESENTS.items():
                _concatenate(node, past, present)
            if len(node.outputs) == 1 + len(_PRESENTS):
                node.resize_outputs(1)
            if len(node.inputs) == 1 + _PAST_VALUE:
                node.resize_inputs(_PAST_KEY)
        return bool(found)


def _has_past(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Attention" or len(node.inputs) <= _PAST_VALUE:
        return False
    causal, unsplit = node.attributes.get_int("is_causal", 0), "q_num_heads" in node.attributes
    return node.inputs[_PAST_KEY] is not None and not causal and not unsplit


def _concatenate(node: ir.Node, past: int, present: int) -> None:
    """Replace input ``past`` and output ``present`` by a Concat before input ``present``."""
    new = node.inputs[present]
    joined = ir.node("Concat", [node.inputs[past], new], {"axis": 2})
    node.prepend(joined)
    result = joined.outputs[0]
    result.name = f"{node.name}_present_{present}"
    result.type = new.type if new is not None else None
    node.replace_input_with(past, None)
    node.replace_input_with(present, result)
    if present < len(node.outputs) and node.outputs[present].name:
        replaced = node.outputs[present]
        name, result.shape = replaced.name, replaced.shape
        replaced.name = ""
        result.name = name
        ir.convenience.replace_all_uses_with(replaced, result, replace_graph_outputs=True)
