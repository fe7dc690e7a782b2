"""Outputs that are probabilities, of a Sigmoid or Softmax: their errors are not relative to them.

What a sigmoid is given, ``x``, has an error relative to its own size, as any computed value has.
The result ``y`` has ``y (1 - y)`` times that error. So the size of ``x`` times that slope is the
scale of such an output, where it is larger than that of ``y``, and 1 at most; both follow from
``y``. Where ``x`` is -14, ``y`` is 1e-6, and off by 14 times the relative error of ``x``. A softmax
is the same of log-odds, but for a shift that it does not see. Single elements have up to 5 standard
deviations of the error of ``x``, which is 1.5 to 2 times the tolerance, at a slope of their own;
as 16 times is allowed them, an eighth of the steepest slope is enough.

A kernel may also compute a sigmoid as ``0.5 + r(x)``, with a rational ``r`` and ``x`` clamped to
18, as onnxruntime's does. That rounds relative to 1: measured against float64 it is off by 0.6 unit
roundoffs rms and 2.6 at most, anywhere on the axis, which is a tenth of 1e-6. (OpenVINO and torch
are exact relative to ``y``.) So such an output may be off by what one operation makes of numbers of
size 1, whatever the depth: 4 unit roundoffs rms, 64 in one element. Softmax has no such floor: its
kernels are exact relative to small results. So are those of Tanh, which is steepest at 0.

That floor would hide what a pass does wrong in a model that answers 1e-6 to all random inputs. So
where Graphs are compared, and not artifacts, a sigmoid is computed as ``1 / (1 + exp(-x))``, which
is exact relative to ``y``, and there is no floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
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
    """The least number that divides the errors of each output of probabilities; 0 of a Softmax.

    Args:
        tolerance: within which the Graph is compared; with it, the result of a Sigmoid may be off
            by what one operation makes of numbers of size 1.
    """
    one = Tolerance.for_precision("fp32", depth=1, contraction=1)
    least = {"Sigmoid": min(1.0, one.rms / tolerance.rms) if tolerance.rms else 1.0, "Softmax": 0.0}
    made = {value.name or "": _makers(value) for value in graph.graph.outputs}
    return {
        name: min(least[op] for op in ops)
        for name, ops in made.items()
        if ops and ops <= set(least)
    }


def without_floor(least: Mapping[str, float]) -> dict[str, float]:
    """The least scales of Graphs whose sigmoids are exact; above 0, which is a Softmax's."""
    return {name: scale and float(np.finfo(np.float32).tiny) for name, scale in least.items()}


def with_exact_sigmoids(graph: Graph) -> Graph:
    """A copy of a Graph that computes each Sigmoid in float32 as ``1 / (1 + exp(-x))``."""
    copy = graph.clone()
    for node in [n for n in copy.graph if n.op_type == "Sigmoid" and not n.domain]:
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        one = ir.node("Constant", [], {"value": ir.tensor(np.array(1, np.float32))})
        negative = ir.node("Neg", [node.inputs[0]])
        power = ir.node("Exp", [negative.outputs[0]])
        total = ir.node("Add", [power.outputs[0], one.outputs[0]])
        for new in (one, negative, power, total):
            new.metadata_props.update(node.metadata_props)
            node.prepend(new)
        node.op_type = "Reciprocal"
        node.replace_input_with(0, total.outputs[0])
    return copy


def _makers(value: ir.Value | None) -> set[str]:
    """The ops whose results a value has as its elements, or means of them; "" if not known."""
    pending = [value]
    seen: set[ir.Value | None] = set()
    found: set[str] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        node = None if value is None else value.producer()
        if node is None or node.domain:
            return {""}
        sources = list(_sources(node, value))
        pending += sources
        if not sources:
            found.add(node.op_type)
    return found


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
