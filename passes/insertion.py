"""Inserts new nodes before a node of a Graph, with the types and shapes of their results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.graph import OPSET

#: Shape inference reads constants up to this many bytes: shapes, axes, bounds.
_SMALL_BYTES = 1024


class Inserter:
    """Inserts nodes of the standard before one node, each result with its type and shape.

    New nodes belong to the module and source line of that node. Equal arrays are one Constant.

    Args:
        before: the node that the new ones stand before.
    """

    def __init__(self, before: ir.Node) -> None:
        self._before = before
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """The first output of a new node."""
        return self.node(op_type, *inputs, **attributes).outputs[0]

    def node(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any
    ) -> ir.Node:
        """A new node with so many outputs."""
        new = ir.node(op_type, inputs, attributes, num_outputs=outputs)
        infer_outputs(new)
        self._prepend(new)
        return new

    def constant(self, array: np.ndarray) -> ir.Value:
        """An array as a Constant."""
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            tensor = ir.tensor(array)
            value = ir.node("Constant", [], {"value": tensor}).outputs[0]
            value.const_value = tensor
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            producer = value.producer()
            assert producer is not None
            self._prepend(producer)
            self._constants[key] = value
        return self._constants[key]

    def integers(self, *numbers: int) -> ir.Value:
        """int64 numbers as a tensor of one axis: axes, a shape, repeats."""
        return self.constant(np.array(numbers, np.int64))

    def integer(self, number: int) -> ir.Value:
        """An int64 scalar."""
        return self.constant(np.array(number, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """A scalar of the dtype of another value."""
        assert like.dtype is not None, f"{like.name} has no dtype"
        return self.constant(np.array(number, like.dtype.numpy()))

    def length(self, value: ir.Value | None, axis: int) -> ir.Value:
        """The size of one axis (0 or more) as an int64 scalar: a Constant where it is known."""
        assert value is not None
        size = value.shape[axis] if value.shape is not None else None
        if isinstance(size, int):
            return self.integer(size)
        return self.op("Squeeze", self.op("Shape", value, start=axis, end=axis + 1))

    def _prepend(self, new: ir.Node) -> None:
        """Insert a node, with the module and source line of the node after it."""
        new.metadata_props.update(self._before.metadata_props)
        self._before.prepend(new)


def infer_outputs(node: ir.Node) -> None:
    """Give the outputs of a node the types and shapes that ONNX infers.

    Symbolic dimensions keep their names. An output that ONNX cannot infer gets no type or shape.
    """
    known: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    names = {v: f"i{index}" for index, v in enumerate(node.inputs) if v is not None}
    for value, name in names.items():
        if value.dtype is None:
            return
        known[name] = _type_proto(value)
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
            data[name] = ir.to_proto(ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name))
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if v is None else names[v] for v in node.inputs)
    proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    try:
        schema = onnx.defs.get_schema(node.op_type, OPSET, node.domain)
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            known,
            data,
            opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
        return
    for index, value in enumerate(node.outputs):
        if (inferred := found.get(f"o{index}")) is not None:
            _set_type(value, inferred)


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    assert value.dtype is not None
    if value.shape is None:
        return onnx.helper.make_tensor_type_proto(int(value.dtype), None)
    dims = [d if isinstance(d, int) else d.value for d in value.shape]
    return onnx.helper.make_tensor_type_proto(int(value.dtype), dims)


def _set_type(value: ir.Value, proto: onnx.TypeProto) -> None:
    tensor = proto.tensor_type
    if tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        value.shape = ir.Shape(
            [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in tensor.shape.dim
            ]
        )
