"""Outputs that a sigmoid makes: their errors are not relative to themselves.

What a sigmoid is given, ``x``, has an error relative to its own size, as any computed value has.
The result ``y`` has ``y (1 - y)`` times that error. So the scale of such an output is the root mean
square of ``x`` times that of the slope, where that is larger than its own, and 1 at most; both
follow from ``y``. Where ``x`` is -14, ``y`` is 1e-6, and off by 14 times the relative error of
``x``.

A kernel may also compute ``0.5 + r(x)``, with a rational ``r`` and ``x`` clamped to 18, as
onnxruntime's does. That rounds relative to 1: measured against float64 it is off by 0.6 unit
roundoffs rms and 2.6 at most, anywhere on the axis, which is a tenth of 1e-6. (OpenVINO and torch
are exact relative to ``y``.) So such an output may be off by what one operation makes of numbers of
size 1, whatever the depth: 4 unit roundoffs rms, 64 in one element.

Softmax and Tanh have no such floor: their kernels are exact relative to small results.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from omnigraph.contract.tolerance import Tolerance
from omnigraph.graph import Graph

#: Ops that move, select or average the elements of their first input: no error becomes larger.
_FIRST = frozenset(
    "AveragePool Cast Expand Flatten Gather GatherElements GatherND GlobalAveragePool "
    "GlobalMaxPool Identity MaxPool ReduceMax ReduceMean ReduceMin Reshape Slice Split Squeeze "
    "Tile Transpose Unsqueeze".split()
)
#: The same of all their inputs.
_ALL = frozenset({"Concat", "Max", "Min"})


def least_scales(graph: Graph, tolerance: Tolerance) -> dict[str, float]:
    """The least number that divides the errors of each output that a sigmoid makes.

    Args:
        tolerance: within which the Graph is compared; with it, an output may be off by what one
            operation makes of numbers of size 1.
    """
    one = Tolerance.for_precision("fp32", depth=1, contraction=1)
    scale = min(1.0, one.rms / tolerance.rms) if tolerance.rms else 1.0
    return {v.name or "": scale for v in graph.graph.outputs if _of_sigmoid(v)}


def _of_sigmoid(value: ir.Value | None) -> bool:
    """Whether each element of a value is the result of a sigmoid, or a mean of some."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        node = None if value is None else value.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "Sigmoid":
            continue
        sources = list(_sources(node, value))
        if not sources:
            return False
        pending += sources
    return True


def _sources(node: ir.Node, value: ir.Value | None) -> Iterator[ir.Value | None]:
    """The values whose elements a node moves, selects or averages."""
    if node.op_type == "If":
        assert value is not None
        for branch in ("then_branch", "else_branch"):
            yield node.attributes[branch].as_graph().outputs[value.index() or 0]
    elif node.op_type in _FIRST:
        yield node.inputs[0]
    elif node.op_type in _ALL:
        yield from node.inputs
