"""Compute a Graph in fp32, with its weights as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import MOVEMENT
from omnigraph.passes.base import Pass
from omnigraph.passes.matching import input_at, standard

_WIDE = ir.DataType.FLOAT
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantizeLinear")
#: Attributes that name the type of a result.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class RemoveRounding(Pass):
    """Round no activation: what is left is the arithmetic, on the weights as they are stored.

    Before::

        y = MatMul(DequantizeLinear(QuantizeLinear(x)), DequantizeLinear(weight int8))
        z = Add(Cast[to=FLOAT16](y), bias float16)

    After, all in float32::

        y = MatMul(x, DequantizeLinear(weight int8))
        z = Add(y, Cast[to=FLOAT](bias))

    Two correct computations of a Graph that rounds activations may round a value differently, and
    then differ as much as rounding itself does. Without rounding they differ by the order of their
    sums alone, so that a fault cannot hide. The contract compares Graphs and artifacts so.

    Outputs of a half type become float32 too. Leaves alone: what is quantized for an op that
    computes with integers, such as MatMulInteger; and what is dequantized with another scale or
    zero point than it was quantized with, since that is no rounding.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        for node in list(_nodes(graph)):
            if standard(node, *_QUANTIZERS) and _only_dequantized(node) and _same_grid(node):
                _pass_on(node)
                changed = True
        return _widen(graph) or changed


def _nodes(graph: Graph) -> Iterator[ir.Node]:
    return ir.traversal.RecursiveGraphIterator(graph.graph)


# Integers -----------------------------------------------------------------------------------------


def _only_dequantized(node: ir.Node) -> bool:
    """Whether an activation is quantized only to be moved and dequantized."""
    value = node.inputs[0]
    if value is None or ir.convenience.get_const_tensor(value) is not None:
        return False
    if standard(node, "QuantizeLinear"):
        return _ends_dequantized(node.outputs[0])
    quantized, *grid = node.outputs
    users = {user for out in grid for user, _ in out.uses()}
    return _ends_dequantized(quantized) and users <= set(_dequantizers(quantized))


def _same_grid(node: ir.Node) -> bool:
    """Whether a quantized activation is dequantized with the scale it was quantized with."""
    scale: ir.Value | None
    zero: ir.Value | None
    if standard(node, "QuantizeLinear"):
        scale, zero = input_at(node, 1), input_at(node, 2)
    else:
        scale, zero = node.outputs[1], node.outputs[2]
    return all(
        _same(scale, input_at(end, 1)) and _same(zero, input_at(end, 2))
        for end in _dequantizers(node.outputs[0])
    )


def _same(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two scales, or two zero points, are equal; one that is left out is 0."""
    if one is other:
        return True
    numbers = [_numbers(value) for value in (one, other)]
    known = [array for array in numbers if array is not None]
    return len(known) == 2 and bool(np.all(known[0] == known[1]))


def _numbers(value: ir.Value | None) -> np.ndarray | None:
    if value is None:
        return np.zeros(1, np.float32)
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy().astype(np.float32)


def _ends_dequantized(value: ir.Value) -> bool:
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        standard(user, "DequantizeLinear")
        or (standard(user, *MOVEMENT) and all(_ends_dequantized(out) for out in user.outputs))
        for user, index in value.uses()
        if index == 0 or not standard(user, "DequantizeLinear")
    )


def _dequantizers(value: ir.Value) -> Iterator[ir.Node]:
    for user, _ in value.uses():
        if standard(user, "DequantizeLinear"):
            yield user
        else:
            for out in user.outputs:
                yield from _dequantizers(out)


def _pass_on(node: ir.Node) -> None:
    """Let the readers of a quantized activation read the activation."""
    source, quantized = node.inputs[0], node.outputs[0]
    assert source is not None
    ends = list(dict.fromkeys(_dequantizers(quantized)))
    moved = [out for user, _ in quantized.uses() for out in _moved(user)]
    ir.convenience.replace_all_uses_with(quantized, source)
    for value in moved:
        value.type = source.type
    for end in ends:
        wide, reading = end.outputs[0], end.inputs[0]
        assert reading is not None and end.graph is not None
        if wide.is_graph_output():
            copy = ir.node("Identity", [reading])
            _become(copy.outputs[0], wide)
            end.append(copy)
            ir.convenience.replace_all_uses_with(wide, copy.outputs[0], replace_graph_outputs=True)
            wide.name, copy.outputs[0].name = f"{wide.name}_rounded", wide.name
            copy.metadata_props.update(end.metadata_props)
        else:
            ir.convenience.replace_all_uses_with(wide, reading)
        end.graph.remove(end, safe=True)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _moved(node: ir.Node) -> Iterator[ir.Value]:
    """The results of moving a quantized value, and of moving those."""
    if standard(node, "DequantizeLinear"):
        return
    for out in node.outputs:
        yield out
        for user, _ in out.uses():
            yield from _moved(user)


def _become(value: ir.Value, like: ir.Value) -> None:
    value.type, value.shape = like.type, like.shape


# Halves -------------------------------------------------------------------------------------------


def _widen(graph: Graph) -> bool:
    """Compute in fp32 what is in a half type; whether there was any."""
    given = {*graph.graph.inputs, *graph.graph.initializers.values()}
    changed = False
    twins: dict[ir.Value, ir.Value] = {}
    for node in list(_nodes(graph)):
        results = [value for value in node.outputs if value.dtype in _HALVES]
        for index, value in enumerate(node.inputs):
            if value in given and value.dtype in _HALVES and not standard(node, "Cast"):
                if value not in twins:
                    twins[value] = _widened(value, node, graph.graph)
                node.replace_input_with(index, twins[value])
                changed = True
        for name in _TYPE_ATTRIBUTES:
            if node.attributes.get_int(name, 0) in _HALVES:
                node.attributes[name] = ir.AttrInt64(name, _WIDE)
        _widen_tensor(node)
        for value in results:
            value.type = ir.TensorType(_WIDE)
            changed = True
    return changed


def _widen_tensor(node: ir.Node) -> None:
    """Make the value of a Constant or ConstantOfShape float32."""
    attribute = node.attributes.get("value")
    if attribute is None or not standard(node, "Constant", "ConstantOfShape"):
        return
    tensor = attribute.as_tensor()
    if tensor.dtype in _HALVES:
        wide = ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)
        node.attributes["value"] = ir.AttrTensor("value", wide)
        if standard(node, "Constant"):
            node.outputs[0].const_value = wide


def _widened(value: ir.Value, reader: ir.Node, graph: ir.Graph) -> ir.Value:
    """The fp32 twin of an input or a weight."""
    cast = ir.node("Cast", [value], {"to": _WIDE})
    cast.metadata_props.update(reader.metadata_props)
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(_WIDE), value.shape
    graph.insert_before(graph[0], cast)
    return cast.outputs[0]
