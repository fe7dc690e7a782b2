"""Makes index expressions in normal form: arithmetic, comparisons, logic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import floor

import onnx_ir as ir

from omnigraph.passes.analysis.index.bounds import bounds
from omnigraph.passes.analysis.index.evaluation import compute
from omnigraph.passes.analysis.index.expression import (
    BOOL,
    FALSE,
    INT64,
    TRUE,
    All,
    Any,
    Apply,
    Choice,
    Coordinate,
    Element,
    Expression,
    IsZero,
    Linear,
    NonNegative,
    Not,
    Number,
    Substitution,
    atom,
    common_factor,
    coordinates,
    is_constant,
    total,
)

_ORDERS = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual"}
_COMPARISONS = _ORDERS | {"Equal"}


def constant(value: float, dtype: ir.DataType) -> Expression:
    """A number of a dtype."""
    return Linear(int(value)) if dtype.is_integer() else Number(float(value), dtype)


def apply(op: str, args: Sequence[Expression], dtype: ir.DataType) -> Expression:
    """An elementwise op on expressions, with a result of this dtype."""
    if dtype.is_integer():
        dtype = INT64
    if all(is_constant(arg) for arg in args):
        return compute_constant(op, args, dtype)
    if op == "Where":
        return choice(args[0], args[1], args[2])
    if op in ("And", "Or"):
        return every(args) if op == "And" else any_of(args)
    if op == "Not":
        return deny(args[0])
    if op in ("Identity", "Cast") and args[0].type == dtype:
        return args[0]
    if (split := _by_choice(op, args, dtype)) is not None:
        return split
    if op == "Cast":
        return _cast(args[0], dtype)
    if op in _COMPARISONS:
        return _compare(op, args[0], args[1])
    if dtype == INT64 and all(arg.type == INT64 for arg in args):
        return _integer(op, [atom(arg) for arg in args])
    return _neutral(op, args, dtype) or Apply(op, tuple(args), dtype)


def compute_constant(op: str, args: Sequence[Expression], dtype: ir.DataType) -> Expression:
    """An op on constants, as the runtime would compute it."""
    node = Apply(op, tuple(args), dtype)
    return constant(compute(node, {}).item(), dtype)


def choice(condition: Expression, then: Expression, otherwise: Expression) -> Expression:
    """One of two expressions by a condition; for booleans, as logic."""
    if condition in (TRUE, FALSE):
        return then if condition == TRUE else otherwise
    if then == otherwise:
        return then
    if then.type == BOOL:
        return any_of([every([condition, then]), every([deny(condition), otherwise])])
    if isinstance(condition, Not):
        condition, then, otherwise = condition.arg, otherwise, then
    result = Choice(condition, then, otherwise)
    return atom(result) if result.type == INT64 else result


def element(value: ir.Value, index: Sequence[Linear]) -> Expression:
    """An element of a table or of data."""
    result = Element(value, tuple(index))
    if not result.type.is_integer():
        return result
    return atom(result if result.type == INT64 else Apply("Cast", (result,), INT64))


def non_negative(linear: Linear) -> Expression:
    """Whether a sum is at least 0."""
    low, high = bounds(linear)
    if low >= 0 or high < 0:
        return TRUE if low >= 0 else FALSE
    for term, factor in linear.terms:
        rest = total([(linear, 1), (atom(term), -factor)])
        if isinstance(term, Apply) and term.op == "Abs":  # r - |x| >= 0: both r - x and r + x are
            sides = [non_negative(rest + atom(term.args[0]) * s) for s in (factor, -factor)]
            return every(sides) if factor < 0 else any_of(sides)
        if isinstance(term, Choice):
            one, other = (non_negative(rest + atom(e) * factor) for e in term.parts[1:])
            return choice(term.condition, one, other)
    if (divisor := common_factor(linear)) > 1:
        terms = tuple((term, factor // divisor) for term, factor in linear.terms)
        return NonNegative(Linear(floor(linear.constant / divisor), terms))
    return NonNegative(linear)


def is_zero(linear: Linear) -> Expression:
    """Whether a sum is 0."""
    low, high = bounds(linear)
    if low > 0 or high < 0 or not linear.terms:
        return TRUE if low == high == 0 else FALSE
    for term, factor in linear.terms:
        rest = total([(linear, 1), (atom(term), -factor)])
        if isinstance(term, Choice):
            one, other = (is_zero(rest + atom(e) * factor) for e in term.parts[1:])
            return choice(term.condition, one, other)
    divisor = common_factor(linear)
    if linear.constant % divisor:
        return FALSE
    sign = -1 if linear.terms[0][1] < 0 else 1
    terms = tuple((term, sign * factor // divisor) for term, factor in linear.terms)
    return IsZero(Linear(sign * linear.constant // divisor, terms))


def deny(predicate: Expression) -> Expression:
    """The negation of a predicate, moved inside it."""
    if predicate in (TRUE, FALSE):
        return FALSE if predicate == TRUE else TRUE
    if isinstance(predicate, NonNegative):
        return non_negative(-predicate.sum - 1)
    if isinstance(predicate, Not):
        return predicate.arg
    if isinstance(predicate, All):
        return any_of([deny(arg) for arg in predicate.args])
    if isinstance(predicate, Any):
        return every([deny(arg) for arg in predicate.args])
    return Not(predicate)


def every(predicates: Iterable[Expression]) -> Expression:
    """Whether all predicates hold."""
    return _join(All, FALSE, TRUE, predicates)


def any_of(predicates: Iterable[Expression]) -> Expression:
    """Whether any predicate holds."""
    return _join(Any, TRUE, FALSE, predicates)


def _join(
    kind: Callable[..., Expression],
    decides: Expression,
    neutral: Expression,
    predicates: Iterable[Expression],
) -> Expression:
    found = dict[Expression, None]()
    for predicate in predicates:
        nested = isinstance(predicate, All | Any) and type(predicate) is kind
        for one in predicate.parts if nested else (predicate,):
            if one == decides:
                return decides
            if one != neutral:
                found[one] = None
    if any(deny(one) in found for one in found):
        return decides
    if len(found) < 2:
        return next(iter(found), neutral)
    return kind(tuple(sorted(found, key=lambda one: one.text)))


def substitute(expression: Expression, places: Substitution) -> Expression:
    """The expression with coordinates replaced by integers, in normal form."""
    if not coordinates(expression) & places.keys():
        return expression
    if isinstance(expression, Coordinate):
        return places[expression.name]
    parts = [substitute(part, places) for part in expression.parts]
    if isinstance(expression, Linear):
        factors = [factor for _, factor in expression.terms]
        sums = zip((atom(part) for part in parts), factors, strict=True)
        return total([(Linear(expression.constant), 1), *sums])
    if isinstance(expression, Apply):
        return apply(expression.op, parts, expression.dtype)
    if isinstance(expression, Element):
        return element(expression.value, [atom(part) for part in parts])
    if isinstance(expression, Choice):
        return choice(*parts)
    if isinstance(expression, NonNegative):
        return non_negative(atom(parts[0]))
    if isinstance(expression, IsZero):
        return is_zero(atom(parts[0]))
    if isinstance(expression, Not):
        return deny(parts[0])
    return every(parts) if isinstance(expression, All) else any_of(parts)


def _by_choice(op: str, args: Sequence[Expression], dtype: ir.DataType) -> Expression | None:
    """An op on numbers chosen by one condition, where both results are constants."""
    choices = {found for arg in args if (found := _choice_in(arg)) is not None}
    conditions = {found.condition for found in choices}
    if len(conditions) != 1:
        return None
    sides = []
    for side in (1, 2):
        picked = [_picked(arg, side) for arg in args]
        if not all(is_constant(arg) for arg in picked):
            return None
        sides.append(apply(op, picked, dtype))
    return choice(conditions.pop(), *sides)


def _choice_in(expression: Expression) -> Choice | None:
    if isinstance(expression, Linear) and len(expression.terms) == 1:
        expression = expression.terms[0][0]
    return expression if isinstance(expression, Choice) else None


def _picked(expression: Expression, side: int) -> Expression:
    found = _choice_in(expression)
    if found is None:
        return expression
    if not isinstance(expression, Linear):
        return found.parts[side]
    return atom(found.parts[side]) * expression.terms[0][1] + expression.constant


def _cast(arg: Expression, dtype: ir.DataType) -> Expression:
    if arg.type == BOOL:
        return choice(arg, constant(1, dtype), constant(0, dtype))
    if dtype == BOOL and arg.type == INT64:
        return deny(is_zero(atom(arg)))
    result = Apply("Cast", (arg,), dtype)
    return atom(result) if dtype == INT64 else result


def _compare(op: str, one: Expression, other: Expression) -> Expression:
    if one.type == BOOL:
        same = any_of([every([one, other]), every([deny(one), deny(other)])])
        for side, against in ((one, other), (other, one)):
            if against in (TRUE, FALSE):
                same = side if against == TRUE else deny(side)
        return same
    if one.type != INT64:
        return Apply(op, (one, other), BOOL)
    first, second = atom(one), atom(other)
    if op == "Equal":
        return is_zero(first - second)
    if op in ("Greater", "GreaterOrEqual"):
        first, second = second, first
    return non_negative(second - first - (1 if op in ("Less", "Greater") else 0))


def _integer(op: str, args: list[Linear]) -> Expression:
    """An op on integers."""
    if op == "Add":
        return total([(arg, 1) for arg in args])
    if op in ("Sub", "Neg"):
        return args[0] - args[1] if op == "Sub" else -args[0]
    if op == "Mul":
        for one, other in ((args[0], args[1]), (args[1], args[0])):
            if not other.terms:
                return one * other.constant
        args.sort(key=lambda arg: arg.text)
    if op in ("Div", "Mod") and not args[1].terms and args[1].constant > 0:
        return _divided(op, args[0], args[1].constant)
    low, high = bounds(args[0])
    if op == "Abs":
        if low >= 0 or high <= 0:
            return args[0] if low >= 0 else -args[0]
        if args[0].terms[0][1] < 0:
            args = [-args[0]]
    if op in ("Min", "Max"):
        return _extreme(op, args)
    return atom(Apply(op, tuple(args), INT64))


def _divided(op: str, linear: Linear, divisor: int) -> Linear:
    """Quotient (towards zero) or remainder (not negative) by a positive number."""
    whole = [(term, factor) for term, factor in linear.terms if factor % divisor == 0]
    quotient = Linear(0, tuple((term, factor // divisor) for term, factor in whole))
    rest = linear - quotient * divisor
    if op == "Mod":
        low, high = bounds(rest)
        if low >= 0 and high < divisor:
            return rest
        return atom(Apply("Mod", (rest, Linear(divisor)), INT64))
    low, high = bounds(rest)
    exact = not rest.terms and rest.constant % divisor == 0
    if exact or (low >= 0 and high < divisor and bounds(quotient)[0] >= 0):
        return quotient + (rest.constant // divisor if exact else 0)
    return atom(Apply("Div", (linear, Linear(divisor)), INT64))


def _extreme(op: str, args: list[Linear]) -> Expression:
    """The least or the greatest of integers, without those that never are."""
    kept: list[Linear] = []
    for arg in dict.fromkeys(args):
        rivals = [one for one in args if one is not arg and one not in (arg,)]
        sign = 1 if op == "Max" else -1
        beaten = any(
            bounds((rival - arg) * sign)[0] > 0
            or (bounds((rival - arg) * sign)[0] >= 0 and rival in kept)
            for rival in rivals
        )
        if not beaten:
            kept.append(arg)
    if len(kept) == 1:
        return kept[0]
    return atom(Apply(op, tuple(sorted(kept, key=lambda arg: arg.text)), INT64))


def _neutral(op: str, args: Sequence[Expression], dtype: ir.DataType) -> Expression | None:
    """The other argument, where a floating-point op adds 0 or multiplies by 1."""
    if len(args) != 2:
        return None
    neutral = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}.get(op)
    for one, other in ((args[0], args[1]), (args[1], args[0])):
        if neutral is not None and other == Number(neutral, dtype):
            return one
        if op in ("Sub", "Div"):
            break
    return None
