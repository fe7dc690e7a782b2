"""Where a Graph has attention that is written out: products, a softmax, and a product again."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.matching import made_by, nodes_of, rank

#: What may stand between the softmax and the product with the values: types, guards, gates, shapes.
_BETWEEN = frozenset("Cast Identity Dropout Where Mul Reshape Transpose Unsqueeze Squeeze".split())
#: How many such nodes at the most.
_MOST_BETWEEN = 6
#: What may stand between the product of queries and keys and the softmax.
_BEFORE = frozenset(
    "Cast Identity Where Add Sub Mul Div Tanh Reshape Transpose Unsqueeze Squeeze Max Clip".split()
)
_MOST_BEFORE = 12


def written_out_attention(graph: Graph) -> Iterator[ir.Node]:
    """Each Softmax over the last axis that is between two products of matrices, in order.

    A softmax of which neither is seen within a few nodes (of classes, of a router) is not one.
    """
    for node in nodes_of(graph, "Softmax"):
        last = (rank(node.inputs[0]) or 0) - 1
        if node.attributes.get_int("axis", -1) not in (-1, last):
            continue
        if _reaches_product(node.outputs[0], _MOST_BETWEEN) and _from_product(
            node.inputs[0], _MOST_BEFORE
        ):
            yield node


def _reaches_product(value: ir.Value, steps: int) -> bool:
    for use in value.uses():
        if use.node.domain != "":
            continue
        if use.node.op_type in ("MatMul", "Einsum", "Gemm"):
            return True
        if (
            steps
            and use.node.op_type in _BETWEEN
            and _reaches_product(use.node.outputs[0], steps - 1)
        ):
            return True
    return False


def _from_product(value: ir.Value | None, steps: int) -> bool:
    if made_by(value, "MatMul", "Einsum", "Gemm") is not None:
        return True
    node = made_by(value, *_BEFORE)
    if node is None or not steps:
        return False
    return any(_from_product(v, steps - 1) for v in node.inputs if v is not None)
