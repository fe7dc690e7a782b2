"""Gives attention masks one axis for all heads where they hide the same keys from each."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    constant,
    input_at,
    made_by,
    nodes_of,
    remove_unused,
    same_dim,
)

_MASK = 3


@dataclass(frozen=True)
class NarrowAttentionMask(Pass):
    """Choose between two numbers once, not once for each head.

    before:  Attention(query, key, value, Where(seen [B, 1, T, S], Expand(0, [1, H, T, S]), hidden))
    after:   Attention(query, key, value, Where(seen, 0, hidden))

    T5's cross-attentions add a position bias of zeros to their mask. The mask has H times the
    numbers that it needs, and OpenVINO 2026.4 computes wrong numbers with it in bf16 where T and S
    are 1. Needs: known axes of the mask. Leaves alone: a bias that is not one number, a mask whose
    queries or keys come from the expansion, and other readers of the mask.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        narrowed: dict[ir.Value, ir.Value] = {}
        for node in list(nodes_of(graph, "Attention")):
            mask = input_at(node, _MASK)
            chosen = made_by(mask, "Where")
            if mask is None or chosen is None or not _is_narrower(chosen.inputs[0], mask):
                continue
            numbers = [_number(value) for value in chosen.inputs[1:]]
            if None in numbers:
                continue
            if mask not in narrowed:
                narrowed[mask] = Inserter(chosen).op("Where", chosen.inputs[0], *numbers)
            node.replace_input_with(_MASK, narrowed[mask])
        for mask in narrowed:
            if (chosen := mask.producer()) is not None:
                remove_unused(chosen)
        return bool(narrowed)


def _is_narrower(seen: ir.Value | None, mask: ir.Value) -> bool:
    """Whether a choice [B, 1, T, S] is made for a mask with more axes."""
    if seen is None or seen.shape is None or mask.shape is None or len(seen.shape) != 4:
        return False
    if len(mask.shape) != 4 or seen.shape[1] != 1 or mask.shape[1] == 1:
        return False
    return all(same_dim(seen.shape[axis], mask.shape[axis]) for axis in (0, 2, 3))


def _number(value: ir.Value | None) -> ir.Value | None:
    """A constant of one element, or the one that is expanded; None for others."""
    expand = made_by(value, "Expand")
    one = value if expand is None else expand.inputs[0]
    array = constant(one)
    return one if array is not None and array.size == 1 else None
