"""Reads a value as a polynomial of other values, in any spelling."""

from __future__ import annotations

import functools
import math

import onnx_ir as ir

from omnigraph.passes.matching import made_by, scalar, standard

#: The coefficient for each tuple of powers, one of each variable; ``{(1, 0): 2.0}`` is ``2 x``.
Polynomial = dict[tuple[int, ...], float]

_ARITHMETIC = ("Add", "Sum", "Sub", "Mul", "Div", "Neg", "Pow")
_MOST_NODES, _HIGHEST_POWER = 12, 4
#: How far a constant may be from the exact number, in roundings of its type.
_ROUNDINGS = 8
_ROUNDOFF = {"FLOAT16": 2.0**-11, "BFLOAT16": 2.0**-8, "FLOAT": 2.0**-24, "DOUBLE": 2.0**-53}


def polynomial(value: ir.Value | None, *variables: ir.Value) -> Polynomial | None:
    """A value as a polynomial of others with constant coefficients; None where it is none."""
    return _Reader(variables).read(value)


def arithmetic(node: ir.Node | None) -> bool:
    """Whether a node can be part of a polynomial."""
    return standard(node, *_ARITHMETIC)


def operands(value: ir.Value) -> list[ir.Value]:
    """A value and those that it is computed from by arithmetic, nearest first. No constants."""
    found = [value]
    for one in found:
        node = made_by(one, *_ARITHMETIC) if len(found) < _MOST_NODES else None
        inputs = node.inputs if node is not None else ()
        found += [v for v in inputs if v is not None and scalar(v) is None and v not in found]
    return found


def rounded_equal(one: float, other: float, like: ir.Value) -> bool:
    """Whether two numbers are equal, up to the rounding of a constant to the type of a value."""
    roundoff = _ROUNDOFF.get(like.dtype.name, 0.0) if like.dtype is not None else 0.0
    return math.isclose(one, other, rel_tol=_ROUNDINGS * roundoff)


def same_polynomial(one: Polynomial | None, other: Polynomial, like: ir.Value) -> bool:
    """Whether two polynomials are equal, up to the rounding of their coefficients."""
    if one is None or one.keys() != other.keys():
        return False
    return all(rounded_equal(one[powers], other[powers], like) for powers in one)


class _Reader:
    """Reads a value as a polynomial, through no more nodes than an activation has."""

    def __init__(self, variables: tuple[ir.Value, ...]) -> None:
        self._variables = variables
        self._left = 2 * _MOST_NODES

    def read(self, value: ir.Value | None) -> Polynomial | None:
        for position, variable in enumerate(self._variables):
            if value is variable:
                return {tuple(int(i == position) for i in range(len(self._variables))): 1.0}
        if (number := scalar(value)) is not None:
            return {(0,) * len(self._variables): number}
        node = made_by(value, *_ARITHMETIC)
        self._left -= 1
        if node is None or self._left < 0:
            return None
        if node.op_type == "Neg":
            return _scaled(self.read(node.inputs[0]), -1.0)
        if node.op_type in ("Pow", "Div"):
            number = scalar(node.inputs[1])
            base = self.read(node.inputs[0]) if number is not None else None
            if base is None or number is None:
                return None
            if node.op_type == "Div":
                return _scaled(base, 1 / number) if number else None
            return _power(base, number)
        if node.op_type == "Sum":
            return functools.reduce(_sum_of, map(self.read, node.inputs))
        one = self.read(node.inputs[0])
        other = self.read(node.inputs[1]) if one is not None else None
        if one is None or other is None:
            return None
        if node.op_type == "Mul":
            return _product(one, other)
        return _sum(one, other if node.op_type == "Add" else _scaled(other, -1.0))


def _scaled(one: Polynomial | None, factor: float) -> Polynomial | None:
    return None if one is None else {powers: factor * c for powers, c in one.items()}


def _sum_of(one: Polynomial | None, other: Polynomial | None) -> Polynomial | None:
    return None if one is None else _sum(one, other)


def _sum(one: Polynomial, other: Polynomial | None) -> Polynomial | None:
    if other is None:
        return None
    keys = [*one, *(powers for powers in other if powers not in one)]
    summed = {powers: one.get(powers, 0.0) + other.get(powers, 0.0) for powers in keys}
    return {powers: c for powers, c in summed.items() if c != 0.0}


def _product(one: Polynomial, other: Polynomial) -> Polynomial:
    found: Polynomial = {}
    for a, x in one.items():
        for b, y in other.items():
            powers = tuple(i + j for i, j in zip(a, b, strict=True))
            found[powers] = found.get(powers, 0.0) + x * y
    return found


def _power(base: Polynomial, exponent: float) -> Polynomial | None:
    if exponent != int(exponent) or not 1 <= exponent <= _HIGHEST_POWER:
        return None
    found = base
    for _ in range(int(exponent) - 1):
        found = _product(found, base)
    return found
