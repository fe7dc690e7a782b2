"""Replaces computed shapes by ones that a Reshape copies from its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class FoldReshapeShapes(Pass):
    """Give Reshape a constant shape, with 0 for "as the input" and one -1 for "the rest".

    before:  Reshape(x [batch, sequence, 64], Concat(Shape(x)[0], Shape(x)[1], 4, 16))
    after:   Reshape(x, [0, 0, 4, 16])

    Needs: shapes on the values around a Reshape. Leaves alone: a Reshape with a constant shape; one
    with two or more symbolic dimensions that its input does not have on the same axis; and one with
    a dimension of size 0.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(ir.traversal.RecursiveGraphIterator(graph.graph)):
            if node.op_type != "Reshape" or node.domain != "":
                continue
            source, shape = node.inputs
            if source is None or shape is None or shape.const_value is not None:
                continue
            target = node.outputs[0].shape
            if target is not None and (constant := _copied_shape(source.shape, target)):
                _set_shape(graph, node, constant)
                changed = True
        return changed


def _copied_shape(source: ir.Shape | None, target: ir.Shape) -> list[int] | None:
    """The constant shape that reshapes ``source`` to ``target``: with zeros, and at most one -1."""
    result: list[int] = []
    for axis, dim in enumerate(target):
        if isinstance(dim, int):
            result.append(dim)
        elif source is not None and axis < len(source) and _same(source[axis], dim):
            result.append(0)
        else:
            result.append(-1)
    fixed_zero = any(dim == 0 for dim in target)
    return None if fixed_zero or result.count(-1) > 1 else result


def _same(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    return isinstance(one, ir.SymbolicDim) and one.value is not None and one == other


def _set_shape(graph: Graph, node: ir.Node, constant: list[int]) -> None:
    # One initializer for each shape, however many Reshapes have it.
    name = "shape_" + "_".join("n1" if size < 0 else str(size) for size in constant)
    value = graph.graph.initializers.get(name)
    if value is None:
        tensor = ir.tensor(np.array(constant, np.int64), name=name)
        value = ir.Value(
            name=name,
            shape=ir.Shape([len(constant)]),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.graph.register_initializer(value)
    node.replace_input_with(1, value)
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
