"""Computes now what depends on no input."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import optimizer

from omnigraph.graph import MODULE_KEY, Graph, count_ops
from omnigraph.passes.base import Pass
from omnigraph.passes.matching import constant, standard

#: Numbers in the pads of a tensor of as many axes as there are.
_SHORT = 16


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute nodes that depend on constants alone, and shapes that are known.

    before:  Add(Constant 1, Constant 2), Shape(x [2, 3])
    after:   Constant 3, Constant [2, 3]

    Needs: nothing. Leaves alone: results over ``output_limit`` elements and inputs over
    ``input_limit``, so that no weight is copied; random ops.
    """

    input_limit: int = 8192
    output_limit: int = 65536

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        cast = _cast_without_saturation(graph)
        before, origins = count_ops(graph), _origins(graph)
        result = optimizer.fold_constants(
            graph,
            onnx_shape_inference=True,
            input_size_limit=self.input_limit,
            output_size_limit=self.output_limit,
            should_fold=_is_short_list,
        )
        _drop_leftovers(graph.graph)
        _inherit(graph, origins)
        return cast or (bool(result.modified) and before != count_ops(graph))


def _is_short_list(node: ir.Node) -> bool | None:
    """Whether a ConstantOfShape, which onnxscript keeps, is as short as a Pad's zeros."""
    length = constant(node.inputs[0]) if standard(node, "ConstantOfShape") else None
    return True if length is not None and length.size == 1 and length[0] <= _SHORT else None


def _drop_leftovers(graph: ir.Graph) -> None:
    """Remove unused nodes that constant folding added; they have no module."""
    for node in reversed(graph):
        used = any(value.uses() or value.is_graph_output() for value in node.outputs)
        if not used and MODULE_KEY not in node.metadata_props:
            graph.remove(node, safe=True)


def _cast_without_saturation(graph: Graph) -> bool:
    """Turn each CastLike that does not saturate into a Cast; onnxscript would make it saturate."""
    found = [
        node
        for node in ir.traversal.RecursiveGraphIterator(graph.graph)
        if node.domain == ""
        and node.op_type == "CastLike"
        and not node.attributes.get_int("saturate", 1)
        and node.inputs[1] is not None
        and node.inputs[1].dtype is not None
    ]
    for node in found:
        like = node.inputs[1]
        assert like is not None and like.dtype is not None
        node.op_type = "Cast"
        node.attributes["to"] = ir.AttrInt64("to", like.dtype)
        node.resize_inputs(1)
    return bool(found)


def _origins(graph: Graph) -> dict[str, dict[str, str]]:
    """The module and source line of each value, by its name."""
    return {
        value.name: node.metadata_props
        for node in ir.traversal.RecursiveGraphIterator(graph.graph)
        for value in node.outputs
        if value.name
    }


def _inherit(graph: Graph, origins: dict[str, dict[str, str]]) -> None:
    """Give a new node the module and source line of the old value that it makes."""
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if MODULE_KEY not in node.metadata_props:
            for value in node.outputs:
                node.metadata_props.update(origins.get(value.name or "", {}))
