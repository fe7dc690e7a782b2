"""Stores weights transposed, in place of transposing them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass


@dataclass(frozen=True)
class FoldWeightTransposes(Pass):
    """Store a weight transposed where a Transpose is its only reader.

    before:  MatMul(x, Transpose(weight))
    after:   MatMul(x, weight_T)            weight_T is computed when it is written, not now

    Needs: nothing. Leaves alone: weights with another reader, such as tied embeddings; transposed
    values that are graph outputs.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(graph.graph):
            weight = node.inputs[0] if node.op_type == "Transpose" and node.domain == "" else None
            if (
                weight is None
                or not _only_transposed(weight, node)
                or node.outputs[0].is_graph_output()
            ):
                continue
            _fold(graph, node, weight)
            changed = True
        return changed


def _only_transposed(weight: ir.Value, node: ir.Node) -> bool:
    if not weight.is_initializer() or weight.const_value is None or weight.is_graph_input():
        return False
    return all(user is node for user, _ in weight.uses()) and not weight.is_graph_output()


def _fold(graph: Graph, node: ir.Node, weight: ir.Value) -> None:
    tensor = weight.const_value
    assert tensor is not None and weight.name is not None
    axes = node.attributes.get_ints("perm") or tuple(reversed(range(len(tensor.shape))))
    name = f"{weight.name}_T"
    shape = ir.Shape([int(tensor.shape[axis]) for axis in axes])  # type: ignore[arg-type]

    def compute() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().transpose(axes)), name=name)

    lazy = ir.LazyTensor(compute, dtype=tensor.dtype, shape=shape, name=name)
    folded = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
    graph.graph.register_initializer(folded)
    ir.convenience.replace_all_uses_with(node.outputs[0], folded)
    graph.graph.remove(node, safe=True)
    graph.graph.initializers.pop(weight.name)
