"""Writes the causal mask out where runtimes read the causal flag in two ways, or not at all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at

_MASK, _PAST_KEY, _NONPAD = 3, 4, 6


@dataclass(frozen=True)
class LegalizeCausalMask(Pass):
    """Write the mask of a causal Attention out, unless it is square and has no other mask.

    Before::

        y = Attention[is_causal=1](q, k, v, mask)

    After, with a mask of numbers (one of booleans is joined by And)::

        visible = Range(0, S) <= Unsqueeze(Range(0, T) + P)       S = P + keys, P of a past
        y       = Attention(q, k, v, Where(visible, mask, -inf))

    The ONNX rule (Attention-24): query i sees key j if and only if j <= i + P. Some runtimes align
    to the other corner where queries and keys differ in number; TensorRT takes either a mask or the
    flag.

    Needs: shapes of queries and keys, to know whether they are equally many. Leaves alone: a square
    Attention without a mask or past, which all runtimes read alike; Attention with
    ``nonpad_kv_seqlen``; Attention of three axes, whose heads are not split.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [n for n in ir.traversal.RecursiveGraphIterator(graph.graph) if _needs_mask(n)]
        for node in found:
            _write_mask(node)
        return bool(found)


def _needs_mask(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type != "Attention":
        return False
    if not node.attributes.get_int("is_causal", 0) or "q_num_heads" in node.attributes:
        return False
    if input_at(node, _NONPAD) is not None:
        return False
    masked = input_at(node, _MASK) is not None or input_at(node, _PAST_KEY) is not None
    return masked or not _same_length(node.inputs[0], node.inputs[1])


def _same_length(query: ir.Value | None, key: ir.Value | None) -> bool:
    """Whether [B, H, T, D] and [B, H, S, D] have T = S for all inputs."""
    if query is None or key is None or query.shape is None or key.shape is None:
        return False
    one, other = query.shape[2], key.shape[2]
    return one == other and (isinstance(one, int) or one.value is not None)


def _write_mask(node: ir.Node) -> None:
    before = Inserter(node)
    queries = before.length(node.inputs[0], 2)
    keys = before.length(node.inputs[1], 2)
    past_key = input_at(node, _PAST_KEY)
    rows = before.op("Range", before.integer(0), queries, before.integer(1))
    if past_key is not None:
        past = before.length(past_key, 2)
        keys = before.op("Add", keys, past)
        rows = before.op("Add", rows, past)
    columns = before.op("Range", before.integer(0), keys, before.integer(1))
    rows = before.op("Unsqueeze", rows, before.integers(1))
    visible = before.op("LessOrEqual", columns, rows)  # [T, S]
    mask = input_at(node, _MASK)
    if mask is None:
        mask = visible
    elif mask.dtype == ir.DataType.BOOL:
        mask = before.op("And", mask, visible)
    else:
        mask = before.op("Where", visible, mask, before.number(-np.inf, mask))
    if len(node.inputs) <= _MASK:
        node.resize_inputs(_MASK + 1)
    node.replace_input_with(_MASK, mask)
    node.attributes.pop("is_causal")
