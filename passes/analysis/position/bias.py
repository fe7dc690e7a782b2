"""Finds the position biases in a mask: the values that depend on positions alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import AXES, HEAD, KEY, QUERY, hiding
from omnigraph.passes.analysis.index import (
    Apply,
    Bounds,
    Expression,
    IndexReader,
    Linear,
    NotClosed,
    Number,
    bounds,
    coordinate,
    coordinates,
    data,
)
from omnigraph.passes.matching import made_by

#: A number at or below this hides a key, also after anything is added to it.
HIDES_ALL = -1e30
_MASK = 3
_CARRIES = ("Add", "Unsqueeze", "Cast", "Expand", "Identity")


@dataclass(frozen=True)
class PositionBias:
    """A float value in a mask, independent of data, and its reader.

    Args:
        value: [.., H or 1, T, S].
        expression: an element of the value.
        dims: its sizes [B, H, T, S], 1 for axes that it does not have.
        user: the node that reads the value, at input ``index``.
        hidden: the number ``hidden``, where the user is ``Where(visible, value, hidden)``.
    """

    value: ir.Value
    expression: Expression
    dims: tuple[Linear, ...]
    user: ir.Node
    index: int
    hidden: float | None = None

    @property
    def heads(self) -> int | None:
        """The number of heads; None where it is not fixed."""
        return None if self.dims[1].terms else self.dims[1].constant


def position_biases(attention: ir.Node) -> Iterator[PositionBias]:
    """The biases of a mask, each before the biases inside it.

    Raises:
        NotClosed: the elements of the mask cannot be read.
    """
    yield from _within(IndexReader(), attention, _MASK)


def _within(reader: IndexReader, user: ir.Node, index: int) -> Iterator[PositionBias]:
    value = user.inputs[index]
    if value is None or value.dtype is None or not value.dtype.is_floating_point():
        return
    if ir.convenience.get_const_tensor(value) is not None:
        return
    dims = reader.dims(value)
    if len(dims) > len(AXES) or any(dim is None for dim in dims):
        raise NotClosed("the shape of the mask is not known", value.producer())
    whole = (*[Linear(1)] * (len(AXES) - len(dims)), *(d for d in dims if d is not None))
    named = zip(AXES, whole, strict=True)
    place = [coordinate(name, None if dim.terms else dim.constant) for name, dim in named]
    expression = reader.element(value, tuple(place[len(AXES) - len(dims) :]))
    free = not data(expression)
    if free and {QUERY, KEY} & coordinates(expression):
        yield PositionBias(value, expression, whole, user, index, _hidden_beside(user, index))
    node = value.producer()
    if made_by(value, "Where") and node is not None:
        for branch in (1, 2):
            if not free or _hidden_beside(node, branch) is not None:
                yield from _within(reader, node, branch)
    elif made_by(value, *_CARRIES) and node is not None and not free:
        for branch in range(2 if node.op_type == "Add" else 1):
            yield from _within(reader, node, branch)


def _hidden_beside(user: ir.Node, index: int) -> float | None:
    """The other number of a Where, if it hides a key."""
    if user.op_type != "Where" or user.domain != "" or index not in (1, 2):
        return None
    other = user.inputs[3 - index]
    tensor = ir.convenience.get_const_tensor(other) if other is not None else None
    if tensor is None or tensor.size != 1:
        return None
    return hiding(Number(float(tensor.numpy().item()), tensor.dtype))


def only_masks(value: ir.Value, capped: bool = True) -> bool:
    """Whether only Attentions read a value, as their mask or inside it.

    Args:
        capped: whether these may cap their scores, which they do after they add the mask.
    """
    if value.is_graph_output():
        return False
    for user, index in value.uses():
        if user.op_type == "Attention" and index == _MASK:
            scores = user.outputs[3] if len(user.outputs) > 3 else None
            if scores is not None and (scores.uses() or scores.is_graph_output()):
                return False
            if not capped and user.attributes.get_float("softcap", 0.0) != 0.0:
                return False
            continue
        carried = user.op_type in _CARRIES or (user.op_type == "Where" and index > 0)
        if not carried or not only_masks(user.outputs[0], capped):
            return False
    return True


def slope_times_distance(expression: Expression) -> tuple[Expression, Expression, Bounds] | None:
    """The slope by head, the distance by position, and the bounds of the slope, of a product."""
    if not isinstance(expression, Apply) or expression.op != "Mul":
        return None
    for slope, distance in (expression.args, expression.args[::-1]):
        if coordinates(slope) <= {HEAD} and HEAD not in coordinates(distance):
            return slope, distance, bounds(slope)
    return None
