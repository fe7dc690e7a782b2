"""Guards the maximum of infinities, for a runtime that starts at a finite number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    made_by,
    nodes_of,
    only_use,
    remove_unused,
    replace_output,
    scalar,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass

#: The result for no elements, and for elements that all are this (ONNX ReduceMax-20, ReduceMin-20).
_STARTS = {"ReduceMax": -np.inf, "ReduceMin": np.inf}


@dataclass(frozen=True)
class LegalizeExtremeReductions(SitePass):
    """Give minus infinity as the maximum of elements that are all minus infinity.

    Before, with floats::

        y = ReduceMax(x, axes)

    After::

        seen = ReduceMax(Not(Equal(x, -inf)), axes)
        y    = Where(seen, ReduceMax(x, axes), -inf)

    ReduceMin is the mirror image. The row of a mask that hides all keys is such a case, and the
    guard of a softmax against such rows needs this result. OpenVINO 2026.4 gives the least finite
    number instead, for no elements as well.

    Needs: dtypes. Leaves alone: integers and booleans.
    """

    def sites(self, graph: Graph) -> list[ir.Node]:
        """Each maximum and minimum of numbers without a guard."""
        found = nodes_of(graph, *_STARTS)
        return [node for node in found if node.inputs[0] is not None and not _guarded(node)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Guard one reduction."""
        value, axes, result = node.inputs[0], node.inputs[1:], node.outputs[0]
        if value is None or value.dtype is None:
            raise Miss("its type is not known")
        if not value.dtype.is_floating_point():
            raise Miss(f"{value.dtype.name.lower()} has no infinity")
        before = Inserter(node)
        start = before.number(_STARTS[node.op_type], value)
        other = before.op("Not", before.op("Equal", value, start))
        options = {
            "keepdims": node.attributes.get_int("keepdims", 1),
            "noop_with_empty_axes": node.attributes.get_int("noop_with_empty_axes", 0),
        }
        seen = before.op("ReduceMax", other, *axes, **options)
        found = before.op(node.op_type, value, *axes, **options)
        replace_output(result, before.op("Where", seen, found, start))
        remove_unused(node)
        return f"{node.op_type} behind a guard"


def _guarded(node: ir.Node) -> bool:
    """Whether this pass made a reduction, of numbers or of the booleans of a guard."""
    value, user = node.inputs[0], only_use(node.outputs[0])
    if value is not None and value.dtype == ir.DataType.BOOL:
        return True
    if not standard(user, "Where") or user is None:
        return False
    return (
        made_by(user.inputs[0], "ReduceMax") is not None
        and scalar(user.inputs[2]) == _STARTS[node.op_type]
    )
