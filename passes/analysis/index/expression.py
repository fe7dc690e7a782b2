"""The kinds of expressions that an element of a tensor can be, as a function of its index.

An element of ``LessOrEqual(Range(0, S)[None, :], Range(0, T)[:, None])`` at ``(i, j)`` is the
predicate ``i - j >= 0``. An integer is a sum of atoms with integer coefficients, and an inequality
is ``sum >= 0``. So two spellings of one thing are equal expressions, and terms cancel: an
expression depends on ``j - i`` alone if and only if ``i`` cancels after ``j`` becomes ``d + i``.

Integers have no bounds. Floating-point operations stay as they are in the Graph, one by one.
`reading` makes expressions from a Graph, `simplification` brings them to normal form, and
`evaluation` gives their numbers or nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from math import gcd
from typing import TypeAlias

import onnx_ir as ir

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


@dataclass(frozen=True)
class Expression:
    """An element of a tensor as a function of coordinates.

    Two expressions are equal if their normal forms are.
    """

    @property
    def type(self) -> ir.DataType:
        """The dtype of the element; every integer is INT64."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The expressions that it is made of."""
        return ()

    @cached_property
    def text(self) -> str:
        """The expression for a person; terms are ordered by it."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Coordinate(Expression):
    """An index of the tensor: from 0 to ``size - 1`` if the size is known; negative if signed."""

    name: str
    size: int | None = None
    signed: bool = False

    @property
    def type(self) -> ir.DataType:
        return INT64

    @cached_property
    def text(self) -> str:
        return self.name


@dataclass(frozen=True)
class Length(Expression):
    """A symbolic dimension of the Graph, such as ``past``; never negative."""

    name: str

    @property
    def type(self) -> ir.DataType:
        return INT64

    @cached_property
    def text(self) -> str:
        return self.name


@dataclass(frozen=True)
class Number(Expression):
    """A constant float or boolean; a constant integer is a `Linear`."""

    value: float
    dtype: ir.DataType

    @property
    def type(self) -> ir.DataType:
        return self.dtype

    @cached_property
    def text(self) -> str:
        return str(bool(self.value)) if self.dtype == BOOL else f"{self.value:g}"


@dataclass(frozen=True)
class Linear(Expression):
    """An integer: a constant and a sum of atoms with coefficients, ordered by the atoms' text."""

    constant: int
    terms: tuple[tuple[Expression, int], ...] = ()

    @property
    def type(self) -> ir.DataType:
        return INT64

    @property
    def parts(self) -> tuple[Expression, ...]:
        return tuple(atom for atom, _ in self.terms)

    @cached_property
    def text(self) -> str:
        words = []
        for atom, factor in self.terms:
            sign = "-" if factor < 0 else "+"
            words.append(
                f"{sign} {atom.text if abs(factor) == 1 else f'{abs(factor)}*{atom.text}'}"
            )
        if self.constant or not words:
            words.append(f"{'-' if self.constant < 0 else '+'} {abs(self.constant)}")
        text = " ".join(words)
        return text.removeprefix("+ ") if text.startswith("+") else "-" + text[2:]

    def of(self, atom: Expression) -> int:
        """The coefficient of an atom."""
        return next((factor for one, factor in self.terms if one == atom), 0)

    def __add__(self, other: Linear | int) -> Linear:
        return total([(self, 1), (other if isinstance(other, Linear) else Linear(other), 1)])

    def __sub__(self, other: Linear | int) -> Linear:
        return total([(self, 1), (other if isinstance(other, Linear) else Linear(other), -1)])

    def __neg__(self) -> Linear:
        return total([(self, -1)])

    def __mul__(self, factor: int) -> Linear:
        return total([(self, factor)])


@dataclass(frozen=True)
class Apply(Expression):
    """An elementwise op of the standard."""

    op: str
    args: tuple[Expression, ...]
    dtype: ir.DataType

    @property
    def type(self) -> ir.DataType:
        return self.dtype

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.args

    @cached_property
    def text(self) -> str:
        name = f"Cast:{self.dtype.name}" if self.op == "Cast" else self.op
        return f"{name}({', '.join(arg.text for arg in self.args)})"


@dataclass(frozen=True)
class Choice(Expression):
    """One of two numbers, chosen by a condition."""

    condition: Expression
    then: Expression
    otherwise: Expression

    @property
    def type(self) -> ir.DataType:
        return self.then.type

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.condition, self.then, self.otherwise)

    @cached_property
    def text(self) -> str:
        return f"({self.then.text} if {self.condition.text} else {self.otherwise.text})"


@dataclass(frozen=True)
class Element(Expression):
    """An element of a table of constants, or of data, at an index."""

    value: ir.Value
    index: tuple[Linear, ...]

    @property
    def type(self) -> ir.DataType:
        assert self.value.dtype is not None
        return self.value.dtype

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.index

    @property
    def is_table(self) -> bool:
        """Whether the tensor is a constant."""
        return ir.convenience.get_const_tensor(self.value) is not None

    @cached_property
    def text(self) -> str:
        return f"{self.value.name}[{', '.join(i.text for i in self.index)}]"


@dataclass(frozen=True)
class NonNegative(Expression):
    """Whether a sum is at least 0; its coefficients have no common factor."""

    sum: Linear

    @property
    def type(self) -> ir.DataType:
        return BOOL

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.sum,)

    @cached_property
    def text(self) -> str:
        return f"{self.sum.text} >= 0"


@dataclass(frozen=True)
class IsZero(Expression):
    """Whether a sum is 0; its first coefficient is positive."""

    sum: Linear

    @property
    def type(self) -> ir.DataType:
        return BOOL

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.sum,)

    @cached_property
    def text(self) -> str:
        return f"{self.sum.text} == 0"


@dataclass(frozen=True)
class Not(Expression):
    """The negation of a predicate that is no inequality."""

    arg: Expression

    @property
    def type(self) -> ir.DataType:
        return BOOL

    @property
    def parts(self) -> tuple[Expression, ...]:
        return (self.arg,)

    @cached_property
    def text(self) -> str:
        return f"not ({self.arg.text})"


@dataclass(frozen=True)
class All(Expression):
    """Whether all of two or more predicates hold; ordered by their text."""

    args: tuple[Expression, ...]

    @property
    def type(self) -> ir.DataType:
        return BOOL

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.args

    @cached_property
    def text(self) -> str:
        return " and ".join(f"({arg.text})" for arg in self.args)


@dataclass(frozen=True)
class Any(Expression):
    """Whether any of two or more predicates holds; ordered by their text."""

    args: tuple[Expression, ...]

    @property
    def type(self) -> ir.DataType:
        return BOOL

    @property
    def parts(self) -> tuple[Expression, ...]:
        return self.args

    @cached_property
    def text(self) -> str:
        return " or ".join(f"({arg.text})" for arg in self.args)


TRUE, FALSE = Number(1, BOOL), Number(0, BOOL)


def coordinate(name: str, size: int | None = None, *, signed: bool = False) -> Linear:
    """A coordinate as an integer; that of an axis of size 1 is 0."""
    return Linear(0) if size == 1 else Linear(0, ((Coordinate(name, size, signed), 1),))


def atom(expression: Expression) -> Linear:
    """Any integer expression as a sum."""
    return expression if isinstance(expression, Linear) else Linear(0, ((expression, 1),))


def total(sums: Iterable[tuple[Linear, int]]) -> Linear:
    """The sum of integers, each with a factor."""
    constant, factors = 0, dict[Expression, int]()
    for one, times in sums:
        constant += times * one.constant
        for term, factor in one.terms:
            factors[term] = factors.get(term, 0) + times * factor
    kept = [(term, factor) for term, factor in factors.items() if factor]
    return Linear(constant, tuple(sorted(kept, key=lambda pair: pair[0].text)))


def common_factor(linear: Linear) -> int:
    """The greatest common divisor of the coefficients; 0 if there are none."""
    return reduce(gcd, (factor for _, factor in linear.terms), 0)


def table(value: ir.Value):  # type: ignore[no-untyped-def]
    """The array of a constant."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None, f"{value.name} is no constant"
    return tensor.numpy()


def inside(expression: Expression) -> Iterator[Expression]:
    """An expression and all expressions inside it, each once."""
    seen, waiting = {expression}, [expression]
    while waiting:
        yield (one := waiting.pop())
        for part in one.parts:
            if part not in seen:
                seen.add(part)
                waiting.append(part)


def coordinates(expression: Expression) -> frozenset[str]:
    """The names of the coordinates that an expression varies with."""
    return frozenset(one.name for one in inside(expression) if isinstance(one, Coordinate))


def lengths(expression: Expression) -> frozenset[str]:
    """The names of the symbolic dimensions that an expression depends on."""
    return frozenset(one.name for one in inside(expression) if isinstance(one, Length))


def data(expression: Expression) -> frozenset[ir.Value]:
    """The tensors whose elements an expression reads, constants left out."""
    return frozenset(
        one.value for one in inside(expression) if isinstance(one, Element) and not one.is_table
    )


def is_constant(expression: Expression) -> bool:
    """Whether it is one number."""
    return isinstance(expression, Number) or (
        isinstance(expression, Linear) and not expression.terms
    )


#: What replaces each coordinate, by name.
Substitution: TypeAlias = Mapping[str, Linear]
