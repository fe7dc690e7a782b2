"""Reads an activation from its ops: arithmetic around one Erf, Tanh or Sigmoid of x."""

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

#: The most nodes from the function to the result.
_MOST_STEPS = 6


def match_activation(
    node: ir.Node, inner: Callable[[Polynomial], bool], outer: Polynomial, said: tuple[str, str]
) -> tuple[ir.Value, ir.Node, Polynomial]:
    """The x, the last node, and the argument of the function as a polynomial of x.

    Args:
        node: the function f: an Erf, Tanh or Sigmoid.
        inner: tells whether a polynomial of x is the right argument of f.
        outer: the result as a polynomial of x and f.
        said: argument and result in words, for the reason of a miss.

    Raises:
        Miss: the node is not part of this activation.
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
