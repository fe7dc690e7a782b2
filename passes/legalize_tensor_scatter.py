"""Replaces TensorScatter by ScatterElements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class LegalizeTensorScatter(Pass):
    """Write into a cache element by element, for runtimes that cannot write a slice.

    Before, with a cache [B, H, C, D] and updates [B, H, T, D]::

        present = TensorScatter[axis=2](cache, update, write_indices)

    After::

        rows    = Reshape(write_indices, [B, 1, 1, 1]) + Reshape(Range(0, T), [1, 1, T, 1])
        present = ScatterElements[axis=2](cache, Expand(rows, Shape(update)), update)

    With ``mode="circular"``, rows are taken modulo C. Without ``write_indices``, they begin at 0
    (ONNX TensorScatter-24). Needs: the rank of the cache. Leaves alone: a TensorScatter whose cache
    has no known rank.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [
            node
            for node in ir.traversal.RecursiveGraphIterator(graph.graph)
            if node.domain == ""
            and node.op_type == "TensorScatter"
            and node.inputs[0] is not None
            and node.inputs[0].shape is not None
        ]
        for node in found:
            _Rewrite(node).run()
        return bool(found)


class _Rewrite:
    """Writes the ScatterElements of one TensorScatter."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.made: list[ir.Node] = []
        cache = node.inputs[0]
        assert cache is not None and cache.shape is not None
        self.rank = len(cache.shape)
        self.axis = node.attributes.get_int("axis", -2) % self.rank

    def run(self) -> None:
        cache, update = self.node.inputs[:2]
        start = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        length = self.size(update)
        rows = self.op("Range", self.number(0), length, self.number(1))
        rows = self.op("Reshape", rows, self.axes_but(self.axis))
        if start is not None:
            rows = self.op("Add", self.op("Reshape", start, self.axes_but(0)), rows)
        if self.node.attributes.get_string("mode", "linear") == "circular":
            rows = self.op("Mod", rows, self.size(cache))
        rows = self.op("Expand", rows, self.op("Shape", update))
        present = ir.node("ScatterElements", [cache, rows, update], {"axis": self.axis})
        old, new = self.node.outputs[0], present.outputs[0]
        new.type, new.shape = old.type, old.shape
        self.node.prepend([*self.made, present])
        assert self.node.graph is not None
        name, old.name = old.name, None
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = name
        self.node.graph.remove(self.node, safe=True)

    def op(
        self, op_type: str, *inputs: ir.Value | None, **attributes: int | ir.TensorProtocol
    ) -> ir.Value:
        new = ir.node(op_type, inputs, attributes)
        new.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        self.made.append(new)
        return new.outputs[0]

    def number(self, number: int | list[int]) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.array(number, np.int64)))

    def size(self, value: ir.Value | None) -> ir.Value:
        """The scattered dimension of a value, as a scalar."""
        return self.op("Squeeze", self.op("Shape", value, start=self.axis, end=self.axis + 1))

    def axes_but(self, axis: int) -> ir.Value:
        """A shape that is 1 on every axis but one."""
        return self.number([-1 if i == axis else 1 for i in range(self.rank)])
