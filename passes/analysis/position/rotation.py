"""Reads a rotation of pairs of features from its ops, in any spelling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.analysis.position.axis_parts import Part, last_axis_part, without_whole_slices
from omnigraph.passes.matching import (
    axis_size,
    made_by,
    only_use,
    rank,
    same_dim,
    scalar,
    standard,
)
from omnigraph.passes.site_pass import Miss


@dataclass(frozen=True)
class Rotation:
    """A rotation of the first features of x.

    Args:
        x: [B, H, T, D] or [B, T, H, D].
        end: the node that makes the rotated x.
        size: R, the number of features that are rotated.
        interleaved: whether a pair is two neighbours; else it is two features R/2 apart.
        cosines, sines: they broadcast with x; R of them where ``twice``, else R/2.
        twice: whether each of a pair has a cosine and a sine of its own.
    """

    x: ir.Value
    end: ir.Node
    size: int
    interleaved: bool
    cosines: ir.Value
    sines: ir.Value
    twice: bool


def may_end_rotation(node: ir.Node) -> bool:
    """Whether a node looks like the end of a rotation: a sum, or the Concat of its halves."""
    if node.op_type == "Add":
        return any(True for _ in _rotated_operands(node))
    halves = _joined(node)
    return halves is not None and all(
        made_by(half, op) is not None and len(_products(made_by(half, op))) == 2
        for half, op in zip(halves[:2], ("Sub", "Add"), strict=True)
    )


def match_rotation(node: ir.Node) -> Rotation:
    """The rotation that ends with a node for which `may_end_rotation` is True.

    Raises:
        Miss: it is no rotation.
    """
    return _match_sum(node) if node.op_type == "Add" else _match_halves(node)


# x * cos + rotated(x) * sin -----------------------------------------------------------------------


def _products(node: ir.Node | None) -> list[ir.Node]:
    """The two products that a node adds or subtracts; empty where its inputs are others."""
    found = [made_by(value, "Mul") for value in node.inputs] if node is not None else []
    return [one for one in found if one is not None] if None not in found else []


def _rotated_operands(node: ir.Node) -> Iterator[tuple[ir.Node, int, ir.Node]]:
    """Each product with a rotated x in a sum, the input that is x, and the other product."""
    products = _products(node)
    for one, other in zip(products, reversed(products), strict=True):
        for index in (0, 1):
            if _negated_first(one.inputs[index]) is not None:
                yield one, index, other


def _negated_first(value: ir.Value | None) -> tuple[ir.Value, ir.Value, bool] | None:
    """The parts b and a of Concat(-b, a), or of -b and a interleaved; and whether interleaved."""
    joined = made_by(value, "Concat", "Reshape")
    halves = _joined(joined) if joined is not None else None
    if halves is None or len(halves) != 2:
        return None
    negated = _negated(halves[0])
    if negated is None or halves[1] is None:
        return None
    assert joined is not None
    return negated, halves[1], joined.op_type == "Reshape"


def _negated(value: ir.Value | None) -> ir.Value | None:
    node = made_by(value, "Neg", "Mul")
    if node is None or (node.op_type == "Mul" and scalar(node.inputs[1]) != -1.0):
        return None
    return node.inputs[0]


def _joined(node: ir.Node) -> list[ir.Value | None] | None:
    """The values joined along the last axis, by a Concat, or interleaved by a Reshape."""
    if node.op_type == "Concat":
        last = (rank(node.outputs[0]) or 0) - 1
        return list(node.inputs) if node.attributes.get_int("axis", 0) in (-1, last) else None
    pairs = made_by(node.inputs[0], "Concat")
    if node.op_type != "Reshape" or pairs is None or axis_size(pairs.outputs[0], -1) != 2:
        return None
    lifted = [made_by(value, "Unsqueeze") for value in pairs.inputs]
    halves = [one.inputs[0] for one in lifted if one is not None]
    if len(lifted) != 2 or len(halves) != 2 or halves[0] is None or halves[0].shape is None:
        return None
    whole, half = node.outputs[0].shape, halves[0].shape
    if whole is None or len(whole) != len(half) or len(half) + 1 != rank(pairs.outputs[0]):
        return None
    if axis_size(pairs.inputs[0], -1) != 1 or axis_size(node.outputs[0], -1) != 2 * half[-1]:
        return None
    return list(halves) if all(map(same_dim, whole[:-1], half[:-1])) else None


def _match_sum(node: ir.Node) -> Rotation:
    miss = Miss("no x is multiplied with the cosines")
    for product, index, other in _rotated_operands(node):
        rotated = _negated_first(product.inputs[index])
        assert rotated is not None
        second, first, interleaved = rotated
        for place in (0, 1):
            x = other.inputs[place]
            size = axis_size(x, -1)
            if x is None or size is None or not _are_halves(first, second, x, size, interleaved):
                miss = Miss("what is rotated is not the x that is multiplied with the cosines")
                continue
            cosines, sines = other.inputs[1 - place], product.inputs[1 - index]
            assert cosines is not None and sines is not None
            whole, end = _with_rest(x, node)
            return Rotation(whole, end, size, interleaved, cosines, sines, twice=True)
    raise miss


def _are_halves(
    first: ir.Value, second: ir.Value, x: ir.Value, size: int, interleaved: bool
) -> bool:
    root = _root_part(x)
    one, other = _root_part(first), _root_part(second)
    if size % 2 or root.step != 1 or not one.source is other.source is root.source:
        return False
    start, stop = root.start, root.stop
    if interleaved:
        return (one.start, other.start, one.step, other.step) == (start, start + 1, 2, 2) and (
            _count(one) == _count(other) == size // 2
        )
    middle = start + size // 2
    return (one.start, one.stop, other.start, other.stop) == (start, middle, middle, stop) and (
        one.step == other.step == 1
    )


def _with_rest(x: ir.Value, node: ir.Node) -> tuple[ir.Value, ir.Node]:
    """The whole head that x is the first part of, and the Concat with the rest of the head."""
    after = only_use(node.outputs[0])
    if after is None or not standard(after, "Concat") or _joined(after) is None:
        return x, node
    if len(after.inputs) != 2 or after.inputs[0] is not node.outputs[0]:
        return x, node
    head = _spanning(x, _root_part(x), _root_part(after.inputs[1]))
    return (x, node) if head is None else (head, after)


# Concat(a * cos - b * sin, b * cos + a * sin) -----------------------------------------------------


def _match_halves(node: ir.Node) -> Rotation:
    halves = _joined(node)
    assert halves is not None
    minus, plus = made_by(halves[0], "Sub"), made_by(halves[1], "Add")
    assert minus is not None and plus is not None
    interleaved = node.op_type == "Reshape"
    for first, cosines in _orders(_products(minus)[0]):
        for second, sines in _orders(_products(minus)[1]):
            sums = [{second, cosines}, {first, sines}]
            if [set(one.inputs) for one in _products(plus)] not in (sums, sums[::-1]):
                continue
            one, other = _root_part(first), _root_part(second)
            if one.source is not other.source:
                continue
            rest = _root_part(halves[2]) if len(halves) == 3 else None
            whole = Part(one.source, one.start, other.stop)
            head = _spanning(first, whole, rest)
            size = 2 * _count(one)
            if head is None or len(halves) > 3:
                raise Miss("no value is the whole head that is rotated")
            if not _are_parts(one, other, size, interleaved):
                raise Miss("what is rotated is not two halves of one head")
            return Rotation(head, node, size, interleaved, cosines, sines, twice=False)
    raise Miss("the two halves are not a * cos - b * sin and b * cos + a * sin")


def _are_parts(one: Part, other: Part, size: int, interleaved: bool) -> bool:
    if interleaved:
        return one.step == other.step == 2 and other.start == one.start + 1
    return one.step == other.step == 1 and one.stop == other.start and 2 * _count(other) == size


def _orders(product: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    a, b = product.inputs
    assert a is not None and b is not None
    return [(a, b), (b, a)]


# Parts of parts -----------------------------------------------------------------------------------


def _count(part: Part) -> int:
    return -((part.start - part.stop) // part.step)


def _root_part(value: ir.Value | None) -> Part:
    """A value as a part of the first value before all Slices and Splits."""
    value = without_whole_slices(value)
    assert value is not None
    part = last_axis_part(value)
    if part is None:
        return Part(value, 0, axis_size(value, -1) or 0)
    root = _root_part(part.source)
    start = root.start + root.step * part.start
    return Part(root.source, start, root.start + root.step * part.stop, root.step * part.step)


def _spanning(value: ir.Value, first: Part, rest: Part | None) -> ir.Value | None:
    """The whole of a first part and the rest: a value, or one that it is a part of."""
    stop = first.stop if rest is None else rest.stop
    if rest is not None and (rest.source is not first.source or rest.start != first.stop):
        return None
    while True:
        value = without_whole_slices(value) or value
        if _root_part(value) == Part(first.source, first.start, stop, 1):
            return value
        part = last_axis_part(value)
        if part is None:
            return None
        value = part.source
