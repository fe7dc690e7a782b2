"""Fuses a Gelu by erf, by tanh or by a sigmoid into one op."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.arithmetic.activation import match_activation
from omnigraph.passes.analysis.arithmetic.polynomial import (
    Polynomial,
    operands,
    polynomial,
    same_polynomial,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    made_by,
    nodes_of,
    remove_unused,
    replace_output,
    scalar,
    standard,
    with_scalar,
)
from omnigraph.passes.site_pass import SitePass


@dataclass(frozen=True)
class FuseGelu(SitePass):
    """Fuse the ops of a Gelu into Gelu, and those of the quick one into Swish with alpha 1.702.

    Before, in any order and with any split of the constants over products and quotients::

        y = x * 0.5 * (1 + Erf(x / sqrt(2)))
        y = x * 0.5 * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))
        y = x * Sigmoid(1.702 * x)

    After::

        y = Gelu(x)    y = Gelu[approximate=tanh](x)    y = Swish[alpha=1.702](x)

    (Hendrycks and Gimpel 2016, section 2.) Needs: constants within eight roundings of these.
    Leaves alone: a Gelu with parts that something else reads, and functions of other constants.
    """

    makes: ClassVar[tuple[str, ...]] = ("Gelu",)

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Erf, each Tanh of a cube or added to a number, each Sigmoid of a multiple."""
        return (node for node in nodes_of(graph, *_FORMS) if _in_an_activation(node))

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse around the function."""
        form = _FORMS[node.op_type]
        x, end, _ = match_activation(
            node,
            lambda found: same_polynomial(found, form.inner, node.outputs[0]),
            form.outer,
            (form.argument, form.result),
        )
        y = Inserter(end).op(form.becomes, x, **form.attributes)
        replace_output(end.outputs[0], y)
        remove_unused(end)
        return form.said


@dataclass(frozen=True)
class _Form:
    """A Gelu around one function: the function's argument, the result, and the op for both."""

    inner: Polynomial
    argument: str
    outer: Polynomial
    result: str
    becomes: str
    attributes: dict[str, Any]
    said: str


_SLOPE = math.sqrt(2 / math.pi)
_QUICK = 1.702
#: x / 2 + x f / 2, and x f: by the powers of x and of f.
_HALF_OF_BOTH: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_PRODUCT: Polynomial = {(1, 1): 1.0}
_FORMS = {
    "Erf": _Form(
        inner={(1,): math.sqrt(0.5)},
        argument="x / sqrt(2)",
        outer=_HALF_OF_BOTH,
        result="x * 0.5 * (1 + erf)",
        becomes="Gelu",
        attributes={"approximate": "none"},
        said="Gelu",
    ),
    "Tanh": _Form(
        inner={(1,): _SLOPE, (3,): _SLOPE * 0.044715},
        argument="sqrt(2 / pi) * (x + 0.044715 * x^3)",
        outer=_HALF_OF_BOTH,
        result="x * 0.5 * (1 + tanh)",
        becomes="Gelu",
        attributes={"approximate": "tanh"},
        said="Gelu, by tanh",
    ),
    "Sigmoid": _Form(
        inner={(1,): _QUICK},
        argument="1.702 * x",
        outer=_PRODUCT,
        result="x * sigmoid(1.702 * x)",
        becomes="Swish",
        attributes={"alpha": float(np.float32(_QUICK))},
        said="Swish, the quick Gelu",
    ),
}


def _in_an_activation(node: ir.Node) -> bool:
    if node.op_type == "Sigmoid":
        scaling = made_by(node.inputs[0], "Mul", "Div")
        return scaling is not None and with_scalar(scaling) is not None
    return node.op_type == "Erf" or _is_of_a_cube(node) or _is_added_to_a_number(node)


def _is_of_a_cube(node: ir.Node) -> bool:
    under = node.inputs[0]
    read = (polynomial(under, x) for x in operands(under)) if under is not None else ()
    return any(found is not None and (3,) in found for found in read)


def _is_added_to_a_number(node: ir.Node) -> bool:
    users = (user for user, _ in node.outputs[0].uses() if standard(user, "Add", "Sum"))
    return any(scalar(value) is not None for user in users for value in user.inputs)
