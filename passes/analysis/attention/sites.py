"""Finds the unfused attention of a Graph: products, a softmax, and a product again."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.matching import made_by, nodes_of, rank, standard

#: Ops between the softmax and the product with the values: types, guards, gates, shapes.
_BETWEEN = "Cast CastLike Dropout Identity Mul Reshape Squeeze Transpose Unsqueeze Where".split()
_MOST_BETWEEN = 6
#: Ops between the product of queries and keys and the softmax.
_BEFORE = frozenset(
    "Cast Identity Where Add Sub Mul Div Tanh Reshape Transpose Unsqueeze Squeeze Max Clip".split()
)
_MOST_BEFORE = 12
_PRODUCTS = ("MatMul", "Einsum", "Gemm")


def unfused_attention(graph: Graph) -> Iterator[ir.Node]:
    """The Softmax of each attention that is not one node, in order.

    Each is a Softmax over the last axis, a few nodes after one product of matrices and a few nodes
    before another. The softmax of a classifier or of a router is not.
    """
    for node in softmaxes_of_keys(graph):
        if reaches_product(node.outputs[0], *_PRODUCTS, steps=_MOST_BETWEEN) and _from_product(
            node.inputs[0], _MOST_BEFORE
        ):
            yield node


def softmaxes_of_keys(graph: Graph) -> Iterator[ir.Node]:
    """Every Softmax over the last axis, which is that of the keys in an attention."""
    for node in nodes_of(graph, "Softmax"):
        last = (rank(node.inputs[0]) or 0) - 1
        if node.attributes.get_int("axis", -1) in (-1, last):
            yield node


def reaches_product(value: ir.Value, *products: str, steps: int = 32) -> bool:
    """Whether a value, as attention weights do, soon becomes a factor of a product of matrices.

    Args:
        products: the ops that count as products.
        steps: the most nodes on the way.
    """
    values = {value: None}
    for _ in range(steps + 1):
        users = [user for v in values for user, _ in v.uses()]
        if any(standard(user, *products) for user in users):
            return True
        values = {user.outputs[0]: None for user in users if standard(user, *_BETWEEN)}
    return False


def _from_product(value: ir.Value | None, steps: int) -> bool:
    if made_by(value, *_PRODUCTS) is not None:
        return True
    node = made_by(value, *_BEFORE)
    if node is None or not steps:
        return False
    return any(_from_product(v, steps - 1) for v in node.inputs if v is not None)
