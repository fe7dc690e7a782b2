"""An activation that is written out: arithmetic around one Erf, Tanh or Sigmoid of x."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from omnigraph.passes.analysis.arithmetic.polynomial import (
    Polynomial,
    arithmetic,
    operands,
    polynomial,
    same_polynomial,
)
from omnigraph.passes.matching import only_use
from omnigraph.passes.site_pass import Miss

#: How many nodes there may be from the function to the result.
_MOST_STEPS = 6


def match_activation(
    node: ir.Node, inner: Callable[[Polynomial], bool], outer: Polynomial, said: tuple[str, str]
) -> tuple[ir.Value, ir.Node, Polynomial]:
    """The x and the last node of an activation, and what its function is of.

    Args:
        node: the Erf, Tanh or Sigmoid f.
        inner: whether f is of the right polynomial of x.
        outer: what the result is of x and of f, by their powers.
        said: the two in words, for the reason of a miss.

    Raises:
        Miss: it is another function of x, or none.
    """
    f = node.outputs[0]
    under = node.inputs[0]
    assert under is not None
    found = [(x, p) for x in operands(under) if (p := polynomial(under, x)) and inner(p)]
    if not found:
        raise Miss(f"{node.op_type} is not of {said[0]}")
    value, users = f, 1
    for _ in range(_MOST_STEPS):
        users = len(list(value.uses()))
        after = only_use(value)
        if after is None or not arithmetic(after):
            break
        value = after.outputs[0]
        for x, p in found:
            if same_polynomial(polynomial(value, x, f), outer, f):
                return x, after, p
    if users > 1:
        raise Miss(f"{users} nodes read a part of it", value.producer())
    raise Miss(f"the result is not {said[1]}")
