"""Reads the attention weights from the softmax to their product with the values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_ir as ir

from omnigraph.passes.analysis.attention.scores import Scores, number, split_heads
from omnigraph.passes.analysis.attention.sites import reaches_product
from omnigraph.passes.matching import axis_size, constant, made_by, rank, standard
from omnigraph.passes.site_pass import Miss


@dataclass
class AttentionWeights:
    """``product = gates * guard(softmax) @ values``, read from a Graph.

    Args:
        product: the MatMul of the attention weights [.., T, S] and the values [.., S, D].
        ungated: the attention weights before the gates, which mode 3 of Attention-24 gives.
        gates: factors that are the same for every key, [.., T or 1, 1].
        zeroed: the condition of each Where that zeroes attention weights, and whether it is True
            where it keeps them.
        guarded: whether a row with all keys hidden is zero, and not NaN.
        nodes: the nodes that were read, from after the softmax to the product.
        heads: the number of heads, where a Reshape on the way splits or joins them.
    """

    product: ir.Node
    ungated: list[ir.Value]
    gates: list[ir.Value] = field(default_factory=list)
    zeroed: list[tuple[ir.Value, bool]] = field(default_factory=list)
    guarded: bool = False
    nodes: list[ir.Node] = field(default_factory=list)
    heads: int | None = None


def read_weights(softmax: ir.Node, scores: Scores) -> AttentionWeights:
    """Follow the result of a Softmax to its product with the values.

    Raises:
        Miss: the attention weights are changed in a way that Attention-24 has no input for.
    """
    value = softmax.outputs[0]
    read = AttentionWeights(softmax, [value])
    while True:
        node = _next(value, softmax)
        read.nodes.append(node)
        if standard(node, "MatMul"):
            if node.inputs[0] is not value:
                raise Miss("the attention weights are the right factor of their product", node)
            read.product = node
            return read
        if standard(node, "Where"):
            _read_where(node, value, softmax, scores, read)
        elif standard(node, "Mul"):
            read.gates.append(_gate(node, value))
        elif standard(node, "Reshape", "Squeeze", "Unsqueeze"):
            read.heads = split_heads(node) or read.heads
        elif standard(node, "Dropout") and _trains(node):
            raise Miss("the attention weights are dropped at random", node)
        value = node.outputs[0]
        if not read.gates:
            read.ungated = [*(() if standard(node, "Where") else read.ungated), value]


def _next(value: ir.Value, softmax: ir.Node) -> ir.Node:
    """The one reader of the attention weights that leads to the product."""
    users = [user for user, _ in value.uses()]
    changes = ("MatMul", "Where", "Mul", "Cast", "CastLike", "Identity", "Dropout", "Reshape")
    leading = [u for u in users if standard(u, *changes, "Squeeze", "Unsqueeze")]
    if len(leading) > 1:
        leading = [u for u in leading if _leads(u)]
    if len(leading) != 1:
        at = users[0] if users and not leading else softmax
        raise Miss("the attention weights do not lead to one product with the values", at)
    return leading[0]


def _leads(node: ir.Node) -> bool:
    return standard(node, "MatMul") or reaches_product(node.outputs[0], "MatMul")


def _trains(node: ir.Node) -> bool:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return (
        len(node.inputs) > 2 and node.inputs[2] is not None and (training is None or bool(training))
    )


def _read_where(
    node: ir.Node, value: ir.Value, softmax: ir.Node, scores: Scores, read: AttentionWeights
) -> None:
    condition, kept = node.inputs[0], node.inputs[2] is value
    other = node.inputs[1 if kept else 2]
    assert condition is not None
    if number(other) != 0.0:
        raise Miss("some attention weights are replaced by what is not zero", node)
    if _is_empty_row(condition, kept, value, softmax, scores, read.nodes):
        read.guarded = True
    else:
        read.zeroed.append((condition, not kept))


def _is_empty_row(
    condition: ir.Value,
    when: bool,
    value: ir.Value,
    softmax: ir.Node,
    scores: Scores,
    nodes: list[ir.Node],
) -> bool:
    """Whether a condition is ``when`` exactly for rows with all keys hidden by -inf."""
    while (node := made_by(condition, "Not", "Identity", "Cast")) is not None:
        nodes.append(node)
        when ^= node.op_type == "Not"
        condition = node.inputs[0]  # type: ignore[assignment]
    node = condition.producer()
    if node is None:
        return False
    nodes.append(node)
    if standard(node, "IsNaN"):
        return when and node.inputs[0] in _same(value, softmax)
    added = (term.value for term in scores.terms if term.fill is None)
    seen = {softmax.inputs[0], *added, *scores.zeros}
    if standard(node, "Equal") and number(node.inputs[1]) == -math.inf and when:
        most = made_by(node.inputs[0], "ReduceMax")
        if most is None or not _over_keys(most):
            return False
        nodes.append(most)
        return _uncast(most.inputs[0]) in {_uncast(v) for v in seen}
    if standard(node, "ReduceMax" if not when else "ReduceMin") and _over_keys(node):
        return _is_hidden(node.inputs[0], when, {_uncast(v) for v in seen}, nodes)
    return False


def _is_hidden(
    value: ir.Value | None, when: bool, seen: set[ir.Value | None], nodes: list[ir.Node]
) -> bool:
    """Whether a value is ``when`` exactly for the scores that are -inf."""
    inverted = not when
    while (node := made_by(value, "Not", "Cast", "Identity")) is not None:
        nodes.append(node)
        inverted ^= node.op_type == "Not"
        value = node.inputs[0]
    node = value.producer() if value is not None else None
    if inverted or node is None or not standard(node, "Equal"):
        return False
    nodes.append(node)
    return number(node.inputs[1]) == -math.inf and _uncast(node.inputs[0]) in seen


def _same(value: ir.Value, softmax: ir.Node) -> set[ir.Value | None]:
    """The values that are NaN where this one is: itself, and what it was cast from."""
    found: set[ir.Value | None] = {value}
    while value is not softmax.outputs[0] and (node := value.producer()) is not None:
        if not standard(node, "Cast", "CastLike", "Identity"):
            break
        assert node.inputs[0] is not None
        value = node.inputs[0]
        found.add(value)
    return found


def _over_keys(node: ir.Node) -> bool:
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    last = (rank(node.inputs[0]) or 0) - 1
    return axes is not None and axes.reshape(-1).tolist() in ([-1], [last])


def _uncast(value: ir.Value | None) -> ir.Value | None:
    while (node := made_by(value, "Cast", "CastLike", "Identity")) is not None:
        value = node.inputs[0]
    return value


def _gate(node: ir.Node, weights: ir.Value) -> ir.Value:
    gate = node.inputs[1] if node.inputs[0] is weights else node.inputs[0]
    assert gate is not None
    axes = rank(gate)
    if axes is None or (axes and axis_size(gate, -1) != 1):
        raise Miss("the attention weights are multiplied by what may differ from key to key", node)
    if axes > (rank(weights) or 0):
        raise Miss("the attention weights are multiplied by what has more axes", node)
    return gate
