"""Splits the heads of an Attention of three axes, as other passes and kernels expect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import nodes_of, rank, replace_output
from omnigraph.passes.site_pass import Miss, SitePass

_HEADS = ("q_num_heads", "kv_num_heads", "kv_num_heads")


@dataclass(frozen=True)
class LegalizeAttentionAxes(SitePass):
    """Split the heads before an Attention of three axes, and join them after it.

    Before, with queries [B, T, H * D] and keys [B, S, K * D]::

        y = Attention[q_num_heads=H, kv_num_heads=K](q, k, v, mask)

    After::

        y = Reshape(Transpose(Attention(split(q), split(k), split(v), mask)), [B, T, H * D])
        split(x) = Transpose[perm=0,2,1,3](Reshape(x, [B, T, H, D]))

    As in the standard (ONNX Attention-24), heads are the slower part of the last axis. Past,
    present and scores have four axes in both forms. Needs: ranks. Leaves alone: Attention of four
    axes.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Each Attention that has its number of heads as an attribute."""
        return [n for n in nodes_of(graph, "Attention") if "q_num_heads" in n.attributes]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Split and join the heads of one Attention."""
        if any(rank(value) != 3 for value in node.inputs[:3]):
            raise Miss("its tensors are not known to have three axes")
        before = Inserter(node)
        query, key, value = (
            _split(before, given, node.attributes.get_int(name))
            for given, name in zip(node.inputs[:3], _HEADS, strict=True)
        )
        attributes = {k: a for k, a in node.attributes.items() if k not in _HEADS}
        inputs = [query, key, value, *node.inputs[3:]]
        new = ir.node("Attention", inputs, num_outputs=len(node.outputs))
        new.attributes.update(attributes)
        node.prepend(new)
        for old, fresh in zip(node.outputs[1:], new.outputs[1:], strict=True):
            fresh.type, fresh.shape = old.type, old.shape
            if old.name:
                replace_output(old, fresh)
            else:
                fresh.name = ""
        heads, result = new.outputs[0], node.outputs[0]
        heads.type = result.type
        if query.shape is not None and value.shape is not None:
            heads.shape = ir.Shape([*query.shape[:3], value.shape[3]])
        joined = before.op("Transpose", heads, perm=[0, 2, 1, 3])
        replace_output(result, before.op("Reshape", joined, before.integers(0, 0, -1)))
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        return "Attention of four axes"


def _split(before: Inserter, given: ir.Value | None, heads: int | None) -> ir.Value:
    """[B, T, H * D] as [B, H, T, D]."""
    assert given is not None and given.shape is not None and heads is not None
    width = given.shape[2]
    size = width // heads if isinstance(width, int) else -1
    apart = before.op("Reshape", given, before.integers(0, 0, heads, size))
    return before.op("Transpose", apart, perm=[0, 2, 1, 3])
