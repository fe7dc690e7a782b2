"""Reads a norm from its ops: values divided by the root of the mean of their squares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.matching import (
    constant,
    input_at,
    made_by,
    only_use,
    rank,
    scalar,
    standard,
    through,
    with_scalar,
)
from omnigraph.passes.site_pass import Miss


@dataclass
class UnfusedNorm:
    """A norm over the last axes, from ``x`` to the output of ``end``.

    Args:
        x: the values that are normalized.
        centred: True for a LayerNorm, which subtracts the mean of x first; False for an RMSNorm.
        axes: the number of last axes that are normalized.
        epsilon: the number added to the mean.
        end: the last node.
        factor: the scale, where it multiplies the root before x does; else None.
    """

    x: ir.Value
    centred: bool
    axes: int
    epsilon: float
    end: ir.Node
    factor: ir.Value | None = None


def divides_by_root_mean(node: ir.Node) -> bool:
    """Whether a Mul or Div divides by the root of a mean of anything."""
    return any(_roots(node))


def _roots(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The value that a node divides by the root of a mean, and the mean with its epsilon."""
    for index in (1,) if node.op_type == "Div" else (0, 1):
        divided, root = node.inputs[1 - index], node.inputs[index]
        power = 0.5 if node.op_type == "Div" else -0.5
        under = _under_root(root, power)
        if divided is not None and under is not None and _mean_of(under) is not None:
            yield divided, under


def _under_root(value: ir.Value | None, power: float) -> ir.Value | None:
    """The value under a square root, or under the reciprocal of one."""
    if (node := made_by(through(value, "Cast"), "Sqrt", "Pow", "Reciprocal", "Div")) is None:
        return None
    if node.op_type == "Sqrt":
        return node.inputs[0] if power == 0.5 else None
    if node.op_type == "Pow":
        return node.inputs[0] if scalar(node.inputs[1]) == power else None
    if power == 0.5 or (node.op_type == "Div" and scalar(node.inputs[0]) != 1.0):
        return None
    return _under_root(node.inputs[-1], 0.5)


def _mean_of(value: ir.Value) -> ir.Node | None:
    """The ReduceMean under a root, with or without something added."""
    added = made_by(value, "Add")
    inputs = added.inputs if added is not None else (value,)
    return next((m for v in inputs if (m := made_by(through(v, "Cast"), "ReduceMean"))), None)


def match_norm(node: ir.Node) -> UnfusedNorm:
    """The norm that ends with a Mul or Div for which `divides_by_root_mean` is True.

    Raises:
        Miss: it is no norm, or not one over the last axes.
    """
    miss = Miss("the root is of no mean of squares")
    for divided, under in _roots(node):
        mean = _mean_of(under)
        assert mean is not None
        added = made_by(under, "Add")
        sum_of = with_scalar(added) if added is not None else (under, 0.0)
        if sum_of is None:
            raise Miss("the epsilon is not a constant", added)
        squared = _squared(mean.inputs[0])
        if squared is None:
            miss = Miss("the mean is not of squares", mean)
            continue
        axes = _last_axes(mean)
        end, factor = node, None
        if not _same(divided, squared):  # a scale may be multiplied with the root first
            after = only_use(node.outputs[0]) if node.op_type == "Mul" else None
            if after is None or not standard(after, "Mul") or not _reads(after, squared):
                miss = Miss("what is divided is not what was squared", mean)
                continue
            end, factor = after, divided
        x = _before_centring(squared, axes)
        if x is None:
            return UnfusedNorm(squared, False, axes, sum_of[1], end, factor)
        return UnfusedNorm(x, True, axes, sum_of[1], end, factor)
    raise miss


def _squared(value: ir.Value | None) -> ir.Value | None:
    """The value that is squared."""
    node = made_by(through(value, "Cast"), "Pow", "Mul")
    if node is None:
        return None
    one, other = node.inputs
    if node.op_type == "Pow":
        return one if scalar(other) == 2.0 else None
    return one if one is other or (one is not None and _same(one, other)) else None


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two values are the same, or the same difference or cast computed twice."""
    if one is None or other is None or one is other:
        return one is other and one is not None
    for op_type in ("Sub", "Cast"):
        a, b = made_by(one, op_type), made_by(other, op_type)
        if a is not None and b is not None:
            to = [n.attributes.get_int("to", 0) for n in (a, b)]
            return to[0] == to[1] and all(map(_same_or_mean, a.inputs, b.inputs))
    return False


def _reads(node: ir.Node, value: ir.Value) -> bool:
    return any(_same(other, value) for other in node.inputs)


def _same_or_mean(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is other:
        return True
    a, b = made_by(one, "ReduceMean"), made_by(other, "ReduceMean")
    if a is None or b is None:
        return _same(one, other)
    return a.inputs[0] is b.inputs[0] and _axes(a) == _axes(b)


def _before_centring(value: ir.Value, axes: int) -> ir.Value | None:
    """The x of ``x - mean(x)`` over so many of the last axes."""
    node = made_by(value, "Sub")
    mean = made_by(node.inputs[1], "ReduceMean") if node is not None else None
    if node is None or mean is None or not _same(mean.inputs[0], node.inputs[0]):
        return None
    try:
        return node.inputs[0] if _last_axes(mean) == axes else None
    except Miss:
        return None


def _axes(mean: ir.Node) -> tuple[int, ...] | None:
    """The axes of a mean, counted from the end, where they are constant and its rank is known."""
    axes, dims = input_at(mean, 1), rank(mean.inputs[0])
    array = constant(axes)
    if dims is None or (axes is not None and array is None):
        return None
    found = array.reshape(-1).tolist() if array is not None else list(range(dims))
    return tuple(sorted(a - dims if a >= 0 else a for a in found))


def _last_axes(mean: ir.Node) -> int:
    """The number of last axes that a mean is over.

    Raises:
        Miss: it is over other axes, or drops them.
    """
    axes = _axes(mean)
    if axes is None:
        raise Miss("the axes of the mean are not constant", mean)
    if not axes or axes != tuple(range(-len(axes), 0)):
        raise Miss(f"the mean is over axes {list(axes)}, not over the last ones", mean)
    if mean.attributes.get_int("keepdims", 1) == 0:
        raise Miss("the mean does not keep its axes", mean)
    return len(axes)
