"""Small questions about nodes and values, for passes that match a pattern by hand.

Where the form is fixed, ``onnxscript.rewriter`` patterns read better. These functions are for
patterns with many spellings, which a pass follows value by value.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

#: Constants with more elements are weights, which are not read.
_MOST_ELEMENTS = 1 << 16


def standard(node: ir.Node | None, *op_types: str) -> bool:
    """Whether a node is one of these ops of the ONNX standard."""
    return node is not None and node.domain == "" and node.op_type in op_types


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that makes a value, if it is one of these ops of the standard."""
    node = value.producer() if value is not None else None
    return node if standard(node, *op_types) else None


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant or an initializer that is small enough to look at."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > _MOST_ELEMENTS:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number of a constant whose elements are all one number."""
    array = constant(value)
    if array is None or array.size == 0:
        return None
    first = array.reshape(-1)[0]
    return float(first) if bool((array == first).all()) else None


def with_scalar(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The other input and the number, where one of two inputs of a node is a scalar constant.

    Only in an op that commutes may the number be the first input.
    """
    sides = [(0, 1), (1, 0)] if node.op_type in ("Add", "Mul", "Max", "Min") else [(0, 1)]
    for one, other in sides:
        value, number = input_at(node, one), scalar(input_at(node, other))
        if value is not None and number is not None:
            return value, number
    return None


def only_use(value: ir.Value) -> ir.Node | None:
    """The only node that reads a value; None if there are more, or it is an output of the Graph."""
    users = list(value.uses())
    return users[0].node if len(users) == 1 and not value.is_graph_output() else None


def through(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """The value before any number of nodes of these ops, by their first inputs."""
    while (node := made_by(value, *op_types)) is not None:
        value = node.inputs[0]
    return value


def nodes_of(graph: ir.Model, *op_types: str) -> Iterator[ir.Node]:
    """Every node of these ops of the standard, in order, subgraphs included."""
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if standard(node, *op_types):
            yield node


def axis_size(value: ir.Value | None, axis: int) -> int | None:
    """The size of an axis (negative counts from the end), where it is a known number."""
    if value is None or value.shape is None or not -len(value.shape) <= axis < len(value.shape):
        return None
    size = value.shape[axis]
    return size if isinstance(size, int) else None


def rank(value: ir.Value | None) -> int | None:
    """How many axes a value has, where that is known."""
    return None if value is None or value.shape is None else len(value.shape)


def same_dim(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to be equal; two without a name are not."""
    return one == other and (isinstance(one, int) or one.value is not None)


def replace_output(old: ir.Value, new: ir.Value) -> None:
    """Replace an old value by a new one, for all readers and as an output of the Graph.

    The new value takes the name of an old output, and the type and shape where it has none.
    """
    name, new.type, new.shape = old.name, new.type or old.type, new.shape or old.shape
    if old.is_graph_output():
        old.name, new.name = f"{name}_before", name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def remove_unused(node: ir.Node) -> None:
    """Remove a node that nothing reads. Then do the same for the nodes that made its inputs."""
    waiting = [node]
    while waiting:
        last = waiting.pop()
        if last.graph is None or any(v.uses() or v.is_graph_output() for v in last.outputs):
            continue
        makers = [value.producer() for value in last.inputs if value is not None]
        last.graph.remove(last, safe=True)
        waiting += [maker for maker in makers if maker is not None]
