"""Drops the reduced axes of a quantized result in a node of its own, for OpenVINO."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at, nodes_of, remove_unused, replace_output, standard
from omnigraph.passes.site_pass import Miss, SitePass

_REDUCTIONS = tuple(
    f"Reduce{kind}" for kind in ("Mean", "Sum", "SumSquare", "Max", "Min", "L1", "L2", "Prod")
)
#: Computed with the reduction, in one kernel.
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Relu", "Gelu", "Clip", "Sigmoid", "Tanh", "Swish")


@dataclass(frozen=True)
class LegalizeDroppedAxes(SitePass):
    """Keep the axes of a reduction that is quantized, and drop them behind it.

    Before::

        y = ReduceMean<keepdims = 0>(x, axes);  q = QuantizeLinear(Mul(y, scales), …)

    After::

        y = Squeeze(ReduceMean<keepdims = 1>(x, axes), axes)

    The CPU plugin of OpenVINO 2026.4 computes such a reduction, the arithmetic behind it and the
    rounding in one kernel. Where axes are dropped, it takes the scales of other channels: a mean of
    tokens that was multiplied by a scale for each channel came out wrong by as much as its size.

    Leaves alone: a reduction of all axes, and one whose result is not quantized.
    """

    def sites(self, graph: Graph) -> list[ir.Node]:
        """Each reduction that drops axes, and whose result is quantized."""
        found = nodes_of(graph, *_REDUCTIONS)
        dropping = [node for node in found if node.attributes.get_int("keepdims", 1) == 0]
        return [node for node in dropping if _is_quantized(node.outputs[0])]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one reduction."""
        value, axes, result = input_at(node, 0), input_at(node, 1), node.outputs[0]
        if value is None or axes is None:
            raise Miss("it reduces all axes")
        before = Inserter(node)
        none = node.attributes.get_int("noop_with_empty_axes", 0)
        kept = before.op(node.op_type, value, axes, keepdims=1, noop_with_empty_axes=none)
        replace_output(result, before.op("Squeeze", kept, axes))
        remove_unused(node)
        return f"{node.op_type} that keeps its axes"


def _is_quantized(value: ir.Value) -> bool:
    """Whether a QuantizeLinear reads a value, directly or behind elementwise nodes."""
    return any(
        standard(user, "QuantizeLinear")
        or (standard(user, *_ELEMENTWISE) and _is_quantized(user.outputs[0]))
        for user, _ in value.uses()
    )
