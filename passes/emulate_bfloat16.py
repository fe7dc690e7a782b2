"""Run a bfloat16 Graph where there is no bfloat16 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import moves
from omnigraph.passes.base import Pass

_WIDE, _NARROW = ir.DataType.FLOAT, ir.DataType.BFLOAT16


@dataclass(frozen=True)
class EmulateBfloat16(Pass):
    """Compute bf16 nodes in fp32, with each result rounded to bf16.

    Before, all bfloat16::

        y = MatMul(x, w)

    After, float32 but for the weights::

        y = Cast[to=FLOAT](Cast[to=BFLOAT16](MatMul(x, Cast[to=FLOAT](w))))

    It checks numbers on a machine without bf16 kernels. The inputs and results of a node are
    rounded as bf16 kernels round them; what a node computes inside is not rounded.

    Needs: a type on every value. Leaves alone: values of other types, and weights as they are
    stored. Nodes that only move elements round nothing.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        work = [node for node in graph.graph if node.op_type != "Cast" and _touches_bfloat16(node)]
        for node in work:
            if node.attributes.get_int("output_dtype", 0) == _NARROW:
                node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", _WIDE)
            for result in node.outputs:
                if result.dtype == _NARROW:
                    _round(result, node)
        # What is still bf16 now is stored so: weights, inputs, and the results of casts.
        twins: dict[ir.Value, ir.Value] = {}
        for node in work:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype == _NARROW:
                    if value not in twins:
                        twins[value] = _widened(value, graph.graph)
                    node.replace_input_with(index, twins[value])
        return bool(work)


def _touches_bfloat16(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == _NARROW for v in (*node.inputs, *node.outputs))


def _round(value: ir.Value, node: ir.Node) -> None:
    """Make a result fp32, and let its users read it rounded to bf16."""
    value.type = ir.TensorType(_WIDE)
    if moves(node) and not value.is_graph_output():
        return
    cast = ir.node("Cast", [value], {"to": _NARROW})
    rounded = cast.outputs[0]
    rounded.type, rounded.shape = ir.TensorType(_NARROW), value.shape
    rounded.name, value.name = value.name, f"{value.name}_unrounded"
    node.append(cast)
    for user, index in tuple(value.uses()):
        if user is not cast:
            user.replace_input_with(index, rounded)
    outputs = node.graph.outputs if isinstance(node.graph, ir.Graph) else []
    for index, output in enumerate(outputs):
        if output is value:
            outputs[index] = rounded


def _widened(value: ir.Value, graph: ir.Graph) -> ir.Value:
    """The fp32 twin of a bf16 value."""
    cast = ir.node("Cast", [value], {"to": _WIDE})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_WIDE), value.shape
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        producer.append(cast)
    return cast.outputs[0]
