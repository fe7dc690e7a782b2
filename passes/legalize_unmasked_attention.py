"""Gives Attention without a mask one that hides nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass

_MASK, _PAST_KEY, _NONPAD = 3, 4, 6


@dataclass(frozen=True)
class LegalizeUnmaskedAttention(Pass):
    """Give an Attention without a mask one that hides nothing.

    Before, with queries [B, H, T, D] and keys [B, H, S, D]::

        y = Attention(q, k, v)

    After::

        all = Expand(True, [T, S])
        y   = Attention(q, k, v, all)

    OpenVINO 2026.4's CPU kernel divides by a wrong sum where it has 16 keys or more, and no mask or
    a mask of one number. All Attention of the same named lengths shares one mask.

    Needs: nothing. Leaves alone: Attention with a mask; causal Attention, whose mask the runtime
    makes; Attention with a past (`LegalizeAttentionPast` runs first and concatenates it) or with
    ``nonpad_kv_seqlen``; Attention of three axes, whose heads are not split.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [n for n in ir.traversal.RecursiveGraphIterator(graph.graph) if _sees_all(n)]
        masks: dict[tuple[object, ...], ir.Value] = {}
        for node in found:
            lengths = _length(node, 0), _length(node, 1)
            key = (node.graph, *lengths) if None not in lengths else (node,)
            if key not in masks:
                masks[key] = _mask_before(node)
            if len(node.inputs) <= _MASK:
                node.resize_inputs(_MASK + 1)
            node.replace_input_with(_MASK, masks[key])
        return bool(found)


def _sees_all(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Attention" or "q_num_heads" in node.attributes:
        return False
    given = [i for i, value in enumerate(node.inputs) if value is not None]
    return not {_MASK, _PAST_KEY, _NONPAD} & set(given) and not node.attributes.get_int(
        "is_causal", 0
    )


def _length(node: ir.Node, index: int) -> int | str | None:
    """The number of queries or keys of an Attention: a number, a name, or None if not known."""
    value = node.inputs[index]
    if value is None or value.shape is None:
        return None
    length = value.shape[2]
    return length if isinstance(length, int) else length.value


def _mask_before(node: ir.Node) -> ir.Value:
    """[T, S] of True, made before ``node``."""
    integers = ir.TensorType(ir.DataType.INT64)
    true = ir.node("Constant", [], {"value": ir.tensor(np.array(True))})
    true.outputs[0].type, true.outputs[0].shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([])
    lengths = [ir.node("Shape", [node.inputs[i]], {"start": 2, "end": 3}) for i in (0, 1)]
    shape = ir.node("Concat", [length.outputs[0] for length in lengths], {"axis": 0})
    for made, size in ((lengths[0], 1), (lengths[1], 1), (shape, 2)):
        made.outputs[0].type, made.outputs[0].shape = integers, ir.Shape([size])
    mask = ir.node("Expand", [true.outputs[0], shape.outputs[0]])
    mask.outputs[0].type = ir.TensorType(ir.DataType.BOOL)
    mask.outputs[0].shape = ir.Shape([_length(node, 0), _length(node, 1)])
    node.prepend([true, *lengths, shape, mask])
    return mask.outputs[0]
