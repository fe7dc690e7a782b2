"""Removes nodes that change nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass

#: Ops of any number of values that pass on a single one.
_OF_ONE = ("Concat", "Sum", "Mean", "Max", "Min")


@dataclass(frozen=True)
class EliminateIdentities(Pass):
    """Remove Identity, casts to the type that a value has, and other nodes without effect.

    before:  Relu(Cast[to=FLOAT](Identity(x float)))
    after:   Relu(x)

    A Concat, Sum, Mean, Max or Min of one value has no effect either, nor has a Transpose that
    keeps the order of the axes.

    Needs: dtypes on values, to know which casts have no effect. Leaves alone: an Identity from a
    graph input or output to another output, which gives one value two names; any other node without
    effect becomes an Identity there.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(graph.graph)):
            if (kept := _same_value(node)) is None:
                continue
            if _replace(node, kept):
                changed = True
            elif node.op_type != "Identity":
                node.op_type = "Identity"
                node.attributes.clear()
                changed = True
        return changed


def _replace(node: ir.Node, kept: ir.Value) -> bool:
    """Replace the output of a node by its input; an output of the Graph keeps its name."""
    gone, graph = node.outputs[0], node.graph
    assert graph is not None
    if gone.is_graph_output():
        if kept.producer() is None or kept.is_graph_output() or kept.graph is not graph:
            return False
        for position, output in enumerate(graph.outputs):
            if output is gone:
                graph.outputs[position] = kept
        name, gone.name = gone.name, None
        kept.name = name
    ir.convenience.replace_all_uses_with(gone, kept)
    graph.remove(node, safe=True)
    return True


def _same_value(node: ir.Node) -> ir.Value | None:
    """The input that a node passes on unchanged, if it does."""
    if node.domain != "" or not node.inputs:
        return None
    value = node.inputs[0]
    if value is None:
        return None
    if node.op_type == "Identity":
        return value
    if node.op_type == "Cast" and value.dtype is not None:
        return value if node.attributes.get_int("to") == value.dtype else None
    if node.op_type in _OF_ONE and len(node.inputs) == 1:
        return value
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm")
        return value if perm is not None and list(perm) == sorted(perm) else None
    return None
