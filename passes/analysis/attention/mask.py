"""Reads the meaning of a mask: which keys a query sees, and with what bias.

A mask is read as an expression of batch ``b``, head ``h``, query ``i`` and key ``j``, which count
from 0 in the mask's own axes. The expression is taken apart into predicates, which all hold where a
key is visible, and terms, whose sum is the bias of a visible key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from omnigraph.passes.analysis.index import (
    TRUE,
    All,
    Apply,
    Choice,
    Coordinate,
    Expression,
    Linear,
    NonNegative,
    Number,
    apply,
    bounds,
    coordinate,
    coordinates,
    data,
    deny,
    every,
    read,
    substitute,
)

#: The coordinates of a mask [B, H, T, S].
AXES = BATCH, HEAD, QUERY, KEY = ("b", "h", "i", "j")
#: A number at or below this hides a key when it is added to the score.
_HIDES = -1e4


@dataclass(frozen=True)
class MaskMeaning:
    """A mask taken apart.

    Args:
        expression: an element of the mask, by ``b``, ``h``, ``i`` and ``j``.
        visible: predicates that all hold where a key is visible; empty if all keys are.
        bias: terms whose sum is added to the score of a visible key; empty if there are none.
        hidden: the number of a hidden key: -inf, or finite; None for a mask of booleans.
        replaces: whether ``hidden`` replaces the bias, as in ``Where(visible, bias, hidden)``, and
            is not added to it.
    """

    expression: Expression
    visible: tuple[Expression, ...]
    bias: tuple[Expression, ...] = ()
    hidden: float | None = None
    replaces: bool = True

    @cached_property
    def right(self) -> Linear | None:
        """The bound ``j <= i + right`` on visible keys; None if there is none."""
        return self._edge(-1)

    @cached_property
    def left(self) -> Linear | None:
        """The bound ``j >= i - left`` on visible keys; None if there is none."""
        return self._edge(1)

    @cached_property
    def positional(self) -> tuple[Expression, ...]:
        """The predicates of positions alone that are no such bound: blocks, for example."""
        return tuple(p for p in self.visible if not data(p) and self._edge_of(p) is None)

    @cached_property
    def by_data(self) -> tuple[Expression, ...]:
        """The predicates that depend on data, such as padding."""
        return tuple(p for p in self.visible if data(p))

    @property
    def is_positional(self) -> bool:
        """Whether the mask depends on no data."""
        return not data(self.expression)

    def is_causal(self, offset: Linear) -> bool:
        """Whether the mask is ``j <= i + offset`` and nothing else, and no bias."""
        only = not self.by_data and not self.positional and self.left is None
        return only and not self.bias and self.right == offset and len(self.visible) == 1

    def _edge(self, side: int) -> Linear | None:
        found = [edge for p in self.visible if (edge := self._edge_of(p)) and edge[0] == side]
        nearest: Linear | None = None
        for _, one in found:
            if nearest is None or bounds(nearest - one)[0] >= 0:
                nearest = one
        return nearest

    def _edge_of(self, predicate: Expression) -> tuple[int, Linear] | None:
        """(1, left) of ``j >= i - left``, (-1, right) of ``j <= i + right``."""
        if not isinstance(predicate, NonNegative):
            return None
        side = next((f for t, f in predicate.sum.terms if _named(t, KEY)), 0)
        other = next((f for t, f in predicate.sum.terms if _named(t, QUERY)), 0)
        rest = Linear(
            predicate.sum.constant,
            tuple(
                (t, f) for t, f in predicate.sum.terms if not (_named(t, KEY) or _named(t, QUERY))
            ),
        )
        if side not in (1, -1) or other != -side or coordinates(rest) or data(rest):
            return None
        return side, rest


def _named(expression: Expression, name: str) -> bool:
    return isinstance(expression, Coordinate) and expression.name == name


def meaning(value: ir.Value) -> MaskMeaning:
    """The meaning of a mask [B or 1, H or 1, T or 1, S]; leading axes may be left out.

    Raises:
        NotClosed: its elements cannot be read as an expression.
    """
    expression = read(value, AXES)
    if expression.type == ir.DataType.BOOL:
        return MaskMeaning(expression, conjuncts(expression))
    visible, bias, hidden, replaces = _apart(expression)
    return MaskMeaning(expression, visible, bias, hidden, replaces)


def conjuncts(predicate: Expression) -> tuple[Expression, ...]:
    """The predicates that a predicate is the conjunction of."""
    if predicate == TRUE:
        return ()
    return predicate.args if isinstance(predicate, All) else (predicate,)


def _apart(
    expression: Expression,
) -> tuple[tuple[Expression, ...], tuple[Expression, ...], float | None, bool]:
    """The parts of an additive mask: visible, bias, hidden and replaces of its meaning."""
    if isinstance(expression, Number) and expression.value == 0:
        return (), (), None, True
    if isinstance(expression, Choice):
        for side, kept in ((expression.otherwise, True), (expression.then, False)):
            number = hiding(side)
            if number is None:
                continue
            shown = expression.condition if kept else deny(expression.condition)
            rest = expression.then if kept else expression.otherwise
            visible, bias, inner, replaces = _apart(rest)
            if inner is not None and (inner != number or not replaces):
                return conjuncts(shown), (rest,), number, True
            return conjuncts(every([shown, *visible])), bias, number, True
    if isinstance(expression, Apply) and expression.op == "Add":
        parts = [_apart(arg) for arg in expression.args]
        hidden = [part[2] for part in parts if part[2] is not None]
        if hidden and all(number == hidden[0] for number in hidden):
            visible = conjuncts(every(p for part in parts for p in part[0]))
            bias = tuple(term for part in parts for term in part[1])
            return visible, bias, hidden[0], not bias
        if not hidden:
            return (), tuple(term for part in parts for term in part[1]), None, True
    return (), (expression,), None, True


def hiding(expression: Expression) -> float | None:
    """The number of a constant that hides a key; else None."""
    if not isinstance(expression, Number) or expression.dtype == ir.DataType.BOOL:
        return None
    return expression.value if expression.value <= _HIDES else None


def difference(expression: Expression, name: str = "d") -> Expression | None:
    """The expression by ``d = j - i``; None if it depends on query or key in another way."""
    found = substitute(expression, {KEY: coordinate(name, signed=True) + coordinate(QUERY)})
    return None if QUERY in coordinates(found) else found


def separate(
    expression: Expression, visible: tuple[Expression, ...] = ()
) -> tuple[Expression, Expression] | None:
    """Split an expression into a sum of one without the query and one without the key.

    The sum is equal in real arithmetic. None if there is no such sum.

    Args:
        expression: of floats.
        visible: predicates that hold wherever the sum is used; below an edge, ``|j - i|`` is
            ``i - j``.
    """
    here, zero = coordinates(expression), Number(0.0, expression.type)
    if QUERY not in here:
        return expression, zero
    if KEY not in here:
        return zero, expression
    if not isinstance(expression, Apply) or not expression.args:
        return None
    op, args, dtype = expression.op, expression.args, expression.dtype
    if op == "Cast" and isinstance(args[0], Linear):
        return _separate_integer(without_abs(args[0], visible), dtype)
    if op in ("Add", "Sub"):
        sides = [separate(arg, visible) for arg in args]
        if sides[0] is None or sides[1] is None:
            return None
        return tuple(apply(op, pair, dtype) for pair in zip(*sides, strict=True))  # type: ignore[arg-type,return-value]
    if op == "Neg":
        inner = separate(args[0], visible)
        return inner and (apply(op, inner[:1], dtype), apply(op, inner[1:], dtype))
    if op in ("Mul", "Div"):
        for at, by in ((0, 1), (1, 0)) if op == "Mul" else ((0, 1),):
            if {QUERY, KEY} & coordinates(args[by]):
                continue
            inner = separate(args[at], visible)
            return inner and (
                apply(op, [inner[0], args[by]], dtype),
                apply(op, [inner[1], args[by]], dtype),
            )
    return None


def _separate_integer(linear: Linear, dtype: ir.DataType) -> tuple[Expression, Expression] | None:
    with_key = [pair for pair in linear.terms if KEY in coordinates(pair[0])]
    if any(QUERY in coordinates(term) for term, _ in with_key):
        return None
    key = Linear(0, tuple(with_key))
    return apply("Cast", [key], dtype), apply("Cast", [linear - key], dtype)


def without_abs(linear: Linear, visible: tuple[Expression, ...]) -> Linear:
    """An integer with ``x`` or ``-x`` in the place of ``|x|``, where a predicate gives the sign."""
    known = [p.sum for p in visible if isinstance(p, NonNegative)]
    result = Linear(linear.constant)
    for term, factor in linear.terms:
        one = Linear(0, ((term, 1),))
        if isinstance(term, Apply) and term.op == "Abs" and isinstance(term.args[0], Linear):
            inner = term.args[0]
            if any(bounds(inner - edge)[0] >= 0 for edge in known):
                one = inner
            elif any(bounds(-inner - edge)[0] >= 0 for edge in known):
                one = -inner
        result = result + one * factor
    return result
