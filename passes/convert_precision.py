"""Convert a float32 Graph to fp16 or bf16 arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import ml_dtypes
import numpy as np
import onnx_ir as ir

from omnigraph.errors import UsageError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import (
    PrecisionPlan,
    indifferent,
    is_weight,
)
from omnigraph.passes.base import Pass
from omnigraph.precision import FLOAT_TYPES

_HALVES = {FLOAT_TYPES[t.name]: t for t in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)}


@dataclass(frozen=True)
class ConvertPrecision(Pass):
    """Compute in fp16 or bf16, and in fp32 where a half type would lose the result.

    Before, all float32::

        x -> LayerNormalization -> MatMul(w) -> Add(b) -> y

    After::

        x -> LayerNormalization -> Cast -> MatMul(w') -> Add(b') -> Cast -> y

    Kept in fp32: norms, softmax, reductions, exponentials, logarithms, powers and roots, with the
    arithmetic directly behind them; whatever is computed from integers alone, such as positions
    and rotary angles; ops of other domains, and ops that are not known here. The softmax inside an
    Attention is the kernel's, which does it in fp32. Elements that are only moved are moved in the
    half type, unless they are fp32 on both sides.

    A QuantizeLinear reads either type, and a DequantizeLinear gives the half type. Scales of a
    tensor or a channel stay in fp32: kernels sum products of integers in the type of the scale, and
    fp16 ends at 65,504. Scales of blocks and of four-bit weights, which are widened first, become
    half.

    Graph inputs and outputs keep their names and types. Weights are converted when they are read,
    each once however many nodes share it. A finite constant beyond the half type, such as the
    least float32 in a mask, becomes the largest half of its sign. It does not become an infinity,
    because an infinity times zero is not a number. An infinity stays one. A constant that is not
    the largest of its own type becomes the largest half but one: `FuseAttention` writes the lowest
    number of a mask so, because onnxruntime zeroes rows of the lowest.

    Args:
        precision: "fp16" or "bf16".
        fp32_ops: more ops to keep in fp32, such as those that a target has in no half type.

    Needs: a type on every value. Leaves alone: integers, booleans, other float types, subgraphs.

    Rounds: each converted result once, to 11 bits (fp16) or 8 bits (bf16).
    """

    precision: str = "fp16"
    fp32_ops: tuple[str, ...] = ()

    rounds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.precision not in _HALVES:
            raise UsageError(
                "convert-precision converts to a half type",
                expected=" or ".join(_HALVES),
                found=repr(self.precision),
                hint="int8 and narrower types come from quantization, fp32 from no conversion",
            )

    def apply(self, graph: Graph) -> bool:
        """Convert in place."""
        return _Conversion(graph.graph, self.precision, self.fp32_ops).run()


class _Conversion:
    """One graph being converted: each float32 value gets at most one twin of the other type."""

    def __init__(self, graph: ir.Graph, precision: str, fp32_ops: tuple[str, ...]) -> None:
        self.graph, self.half, self.suffix = graph, _HALVES[precision], f"_{precision}"
        self.limit = float(ml_dtypes.finfo(self.half.numpy()).max)
        self.plan = PrecisionPlan(graph, self.half, self.limit, fp32_ops)
        self.twins: dict[ir.Value, ir.Value] = {}

    def run(self) -> bool:
        """Convert; whether anything changed."""
        narrow = [node for node in self.graph if self.plan.narrows(node)]
        results = [v for n in narrow for v in n.outputs if v.dtype == ir.DataType.FLOAT]
        stays = set(results)  # values that change type where they are
        for node in narrow:
            self._read_halves(node, stays)
        for value in results:
            self._narrow(value)
        for node in narrow:
            self._drop_empty_cast(node)
        self._drop_unused()
        return bool(narrow)

    def _read_halves(self, node: ir.Node, stays: set[ir.Value]) -> None:
        """Let a node read halves, or set the half type as the type of its output."""
        if _keeps_scale(node):
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", self.half)
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == ir.DataType.FLOAT and value not in stays:
                node.replace_input_with(index, self._in_half(value))
        if node.op_type == "DequantizeLinear":
            node.attributes.pop("output_dtype", None)  # it is that of the scales
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", self.half)

    def _in_half(self, value: ir.Value) -> ir.Value:
        """The half twin of a float32 value that stays."""
        if value not in self.twins:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None and (is_weight(value) or not value.is_initializer()):
                self.twins[value] = self._half_weight(value, tensor)
            else:
                self.twins[value] = self._cast_to_half(value)
        return self.twins[value]

    def _half_weight(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        name = f"{value.name}{self.suffix}"
        # A scale is not 0, whatever it scales.
        scales = any(user.op_type == "DequantizeLinear" for user, _ in value.uses())
        least = float(ml_dtypes.finfo(self.half.numpy()).smallest_subnormal) if scales else None
        lazy = ir.LazyTensor(
            lambda: ir.Tensor(
                _rounded(tensor.numpy(), self.half.numpy(), self.limit, least), name=name
            ),
            dtype=self.half,
            shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
            name=name,
        )
        twin = ir.Value(
            name=name, type=ir.TensorType(self.half), shape=lazy.shape, const_value=lazy
        )
        self.graph.register_initializer(twin)
        return twin

    def _cast_to_half(self, value: ir.Value) -> ir.Value:
        nodes, source = [], value
        if value in self.plan.huge:
            nodes.append(ir.node("Clip", [source, self._bound(-1), self._bound(1)]))
            source = _typed(nodes[-1].outputs[0], f"{value.name}_clipped", value, value.dtype)
        nodes.append(ir.node("Cast", [source], {"to": self.half}))
        self._insert_after(value, nodes)
        return _typed(nodes[-1].outputs[0], f"{value.name}{self.suffix}", value, self.half)

    def _bound(self, sign: int) -> ir.Value:
        name = f"{'least' if sign < 0 else 'largest'}{self.suffix}"
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.float32(sign * self.limit), name=name)
            self.graph.register_initializer(ir.Value(name=name, const_value=tensor))
        return self.graph.initializers[name]

    def _narrow(self, value: ir.Value) -> None:
        """Give a result the half type; other nodes that need fp32, and the caller, read a cast."""
        unable = [(u, i) for u, i in value.uses() if not self._takes_half(u)]
        is_output = value.is_graph_output()
        if unable or is_output:
            cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            wide = _typed(cast.outputs[0], f"{value.name}_fp32", value, ir.DataType.FLOAT)
            self._insert_after(value, [cast])
            for user, index in unable:
                user.replace_input_with(index, wide)
            if is_output:
                name = value.name
                value.name, wide.name = f"{name}{self.suffix}", name
                for index, output in enumerate(self.graph.outputs):
                    if output is value:
                        self.graph.outputs[index] = wide
        value.type = ir.TensorType(self.half)  # not in place: copies of a Graph share types

    def _takes_half(self, node: ir.Node) -> bool:
        return node.graph is self.graph and (self.plan.narrows(node) or indifferent(node))

    def _insert_after(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, nodes)
        else:
            self.graph.insert_before(self.graph[0], nodes)

    def _drop_empty_cast(self, node: ir.Node) -> None:
        """Remove a cast of a half to itself, which was one of a half to float32."""
        source = node.inputs[0] if node.op_type == "Cast" else None
        if source is not None and source.dtype == self.half:
            node.outputs[0].replace_all_uses_with(source)
            self.graph.remove(node, safe=True)

    def _drop_unused(self) -> None:
        for value in self.twins:
            if is_weight(value) and not value.uses() and not value.is_graph_output():
                twin, name = self.twins[value], value.name
                assert name is not None
                self.graph.initializers.pop(name)
                value.const_value = None  # onnx_ir remembers the value, and would keep its data
                twin.name = name


def _keeps_scale(node: ir.Node) -> bool:
    """Whether a node is a DequantizeLinear of whole tensors or channels in 8 bits or more."""
    if node.op_type != "DequantizeLinear":
        return False
    if node.attributes.get_int("block_size", 0):
        return False
    quantized = node.inputs[0]
    return quantized is None or quantized.dtype is None or quantized.dtype.bitwidth >= 8


def _rounded(
    array: np.ndarray, dtype: np.dtype, limit: float, least: float | None = None
) -> np.ndarray:
    """``array`` in a half type, with finite numbers beyond its range at the end of the range.

    The largest of its own type becomes the largest half, and others the largest half but one.

    Args:
        least: the number that smaller ones become.
    """
    with np.errstate(over="ignore"):
        half = array.astype(dtype)
    beyond = np.isinf(half) & np.isfinite(array)
    if beyond.any():
        largest = np.array(limit, dtype)
        end = np.abs(array[beyond]) >= float(ml_dtypes.finfo(array.dtype).max)
        size = np.where(end, largest, np.nextafter(largest, np.array(0, dtype)))
        half[beyond] = np.copysign(size.astype(np.float32), array[beyond]).astype(dtype)
    return half if least is None else np.maximum(half, np.array(least, dtype))


def _typed(value: ir.Value, name: str, like: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    value.name, value.shape = name, like.shape
    value.type = None if dtype is None else ir.TensorType(dtype)
    return value
