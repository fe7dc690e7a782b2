"""What the mask of an attention means: which keys a query sees, and with what bias.

A mask is read as an expression of batch ``b``, head ``h``, query ``i`` and key ``j``, numbered from
0 in the mask's own axes, and taken apart: a conjunction of predicates says what is visible, a sum
of terms is the bias of what is.
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
#: At or below this, a number added to a score hides the key.
_HIDES = -1e4


@dataclass(frozen=True)
class MaskMeaning:
    """A mask taken apart.

    Args:
        expression: an element of the mask, of ``b``, ``h``, ``i`` and ``j``.
        visible: predicates that all hold where a key is visible; none: all keys are.
        bias: terms whose sum is added to the score of a visible key; none: nothing is.
        hidden: what a hidden score gets: -inf, or a finite number; None for a mask of booleans.
        replaces: whether ``hidden`` stands in the place of the bias, ``Where(visible, bias,
            hidden)``, and is not added to it.
    """

    expression: Expression
    visible: tuple[Expression, ...]
    bias: tuple[Expression, ...] = ()
    hidden: float | None = None
    replaces: bool = True

    @cached_property
    def right(self) -> Linear | None:
        """A query sees no key beyond ``j <= i + right``; None: no such bound."""
        return self._edge(-1)

    @cached_property
    def left(self) -> Linear | None:
        """A query sees no key before ``j >= i - left``; None: no such bound."""
        return self._edge(1)

    @cached_property
    def positional(self) -> tuple[Expression, ...]:
        """The predicates that depend on positions alone and are no edge: blocks, for example."""
        return tuple(p for p in self.visible if not data(p) and self._edge_of(p) is None)

    @cached_property
    def by_data(self) -> tuple[Expression, ...]:
        """The predicates that depend on data, such as padding."""
        return tuple(p for p in self.visible if data(p))

    @property
    def is_positional(self) -> bool:
        """Whether nothing of the mask depends on data."""
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
    """What a mask [B or 1, H or 1, T or 1, S] means; of fewer axes, the first are left out.

    Raises:
        NotClosed: its elements cannot be read as an expression.
    """
    expression = read(value, AXES)
    if expression.type == ir.DataType.BOOL:
        return MaskMeaning(expression, conjuncts(expression))
    visible, bias, hidden, replaces = _apart(expression)
    return MaskMeaning(expression, visible, bias, hidden, replaces)


def conjuncts(predicate: Expression) -> tuple[Expression, ...]:
    """The predicates whose conjunction it is."""
    if predicate == TRUE:
        return ()
    return predicate.args if isinstance(predicate, All) else (predicate,)


def _apart(
    expression: Expression,
) -> tuple[tuple[Expression, ...], tuple[Expression, ...], float | None, bool]:
    """An additive mask: predicates, bias, the hidden number, whether it replaces the bias."""
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
    """The number of a constant that hides a key, or None."""
    if not isinstance(expression, Number) or expression.dtype == ir.DataType.BOOL:
        return None
    return expression.value if expression.value <= _HIDES else None


def difference(expression: Expression, name: str = "d") -> Expression | None:
    """The expression of ``d = j - i``, if it depends on query and key through that alone."""
    found = substitute(expression, {KEY: coordinate(name, signed=True) + coordinate(QUERY)})
    return None if QUERY in coordinates(found) else found


def separate(
    expression: Expression, visible: tuple[Expression, ...] = ()
) -> tuple[Expression, Expression] | None:
    """Two expressions, without the query and without the key, whose sum it is in real arithmetic.

    Args:
        expression: of floats.
        visible: what holds where the sum is asked for: ``|j - i|`` is ``i - j`` below an edge.
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
    """An integer with ``|x|`` read as ``x`` or ``-x`` where a predicate says which it is."""
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
