"""Which nodes of a float32 Graph keep computing in fp32 when the rest becomes fp16 or bf16.

A half type has too few digits, or too small a range, for sums of many terms, for exponentials and
square roots, and for positions. `PrecisionPlan` finds the nodes that compute these, and
ConvertPrecision converts all others.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from omnigraph.graph import OPSET

#: Computed in the half type: matrix products, which every kernel sums in fp32; arithmetic that
#: rounds once per element; dequantization. An op in none of these sets stays in fp32.
NARROW = frozenset(
    "MatMul Gemm Einsum Conv ConvTranspose Attention RotaryEmbedding Add Sub Mul Div Neg Abs Sum "
    "Min Max Clip Relu LeakyRelu PRelu Gelu Swish HardSwish HardSigmoid Sigmoid Tanh Erf Elu Selu "
    "Celu Mish Softsign ThresholdedRelu Sign Ceil Floor Round Mod DequantizeLinear".split()
)
#: Moves elements and computes nothing: in the type of its input, or of its reader.
MOVEMENT = frozenset(
    "Identity Transpose Reshape Flatten Squeeze Unsqueeze Concat Split Slice Gather GatherElements "
    "GatherND ScatterElements ScatterND TensorScatter Expand Tile Pad Where Trilu Dropout "
    "DepthToSpace SpaceToDepth ReverseSequence Compress".split()
)
#: Gives the same result, no float, for any float type. QuantizeLinear divides in its scale's type.
INDIFFERENT = frozenset("Shape Size IsNaN IsInf NonZero ArgMax ArgMin QuantizeLinear".split())
#: The node after one of these is part of the same norm, softmax or loss: the difference from a
#: mean, the epsilon under a root, the quotient by a sum.
SCALES = frozenset(
    "ReduceMean ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceMax ReduceMin ReduceProd "
    "ReduceLogSum ReduceLogSumExp Pow Sqrt Reciprocal Exp Log CumSum".split()
)
#: Matrix products: they sum in fp32 whatever the type of their inputs.
_PRODUCTS = frozenset("MatMul Gemm Einsum Conv ConvTranspose Attention".split())
#: Bounded for any input: their results are no positions any more.
_BOUNDED = frozenset("Sin Cos Sigmoid Tanh Erf Attention Softmax".split())
#: Keep a value from 0 with a constant.
_GUARDS = frozenset(["Add", "Clip", "Max"])
_SOURCES = frozenset("Range EyeLike".split())
#: No constant of a mask is larger. Larger initializers are weights, and are not read.
_MOST_ELEMENTS = 1 << 16


class PrecisionPlan:
    """Which nodes of a graph stay in fp32, and which values may be huge but finite.

    Float values are traced front to back. An "exact" one is computed from integers and constants
    alone: positions, distances, masks as numbers. No bf16 holds every integer above 256, and no
    fp16 above 2048. A "huge" one is exact and made with a finite constant beyond the half type,
    such as the least float32. A "guarded" one is kept from 0 by a constant below the half type's
    normal numbers, such as the 1e-12 under a vector's length: it, and what is divided by it, stay
    in fp32, since the half type may make it 0.

    Args:
        graph: the main graph of a Graph; nodes of subgraphs are skipped.
        half: the half type.
        limit: its largest number.
        fp32_ops: further ops that stay in fp32.
    """

    def __init__(
        self, graph: ir.Graph, half: ir.DataType, limit: float, fp32_ops: Collection[str] = ()
    ) -> None:
        self._half, self._limit, self._fp32_ops = half, limit, fp32_ops
        self._least = float(ml_dtypes.finfo(half.numpy()).smallest_normal)
        self._constant: set[ir.Value] = set()
        self._exact: set[ir.Value] = set()
        self.huge: set[ir.Value] = set()
        self._guarded: set[ir.Value] = set()
        #: The nodes that stay in fp32.
        self.wide: set[ir.Node] = set()
        self._wide_sources: set[ir.Node] = set()
        for node in graph:
            self._trace_kind(node)
            self._trace_width(node)
        for node in reversed(graph):
            if moves(node) and self._stays_wide(node):
                self.wide.add(node)

    def narrows(self, node: ir.Node) -> bool:
        """Whether a node becomes one that computes in the half type."""
        gives_float = any(v.dtype == ir.DataType.FLOAT for v in node.outputs)
        return gives_float and node not in self.wide and not indifferent(node)

    def _trace_kind(self, node: ir.Node) -> None:
        inputs = list(float_inputs(node))
        varying = self._varying(node)
        if node.op_type == "Constant" or (moves(node) and inputs and not varying):
            self._constant.update(node.outputs)
        elif _starts_exact(node) or (
            varying and self._exact.issuperset(varying) and node.op_type not in _BOUNDED
        ):
            self._exact.update(node.outputs)
            if any(v in self.huge or self._is_huge_constant(v) for v in inputs):
                self.huge.update(node.outputs)

    def _trace_width(self, node: ir.Node) -> None:
        if moves(node):
            if not self._guarded.isdisjoint(node.inputs):
                self._guarded.update(node.outputs)
            producers = [v.producer() for v in self._varying(node)]
            if all(p is None or p in self._wide_sources for p in producers):
                self._wide_sources.add(node)
        elif not indifferent(node) and not self._is_narrow(node):
            self._wide_sources.add(node)
            self.wide.add(node)

    def _is_narrow(self, node: ir.Node) -> bool:
        if node.domain != "" or node.op_type not in NARROW or not exists_in(node, self._half):
            return False
        if node.op_type in self._fp32_ops or any(v in self._exact for v in node.outputs):
            return False
        if node.op_type in _PRODUCTS:
            return True
        if node.op_type in _GUARDS and any(self._is_tiny_constant(v) for v in float_inputs(node)):
            self._guarded.update(node.outputs)
        if not self._guarded.isdisjoint(node.outputs):
            return False
        if node.op_type == "Div" and node.inputs[1] in self._guarded:
            return False
        producers = (v.producer() for v in float_inputs(node))
        return not any(p is not None and p.op_type in SCALES for p in producers)

    def _stays_wide(self, node: ir.Node) -> bool:
        """Whether a node moves fp32 values to a reader that computes in fp32."""
        if not exists_in(node, self._half):
            return True
        if node not in self._wide_sources:
            return False
        if not self._constant.issuperset(node.outputs):
            outputs = any(v.is_graph_output() for v in node.outputs)
            users = [user for v in node.outputs for user, _ in v.uses()]
            return outputs or any(u in self.wide or u.graph is not node.graph for u in users)
        # A table of weights is kept in fp32 for positions, and not for a norm.
        users = [user for v in node.outputs for user, _ in v.uses() if user in self.wide]
        return any(moves(u) or not self._exact.isdisjoint(u.outputs) for u in users)

    def _varying(self, node: ir.Node) -> list[ir.Value]:
        return [v for v in float_inputs(node) if v not in self._constant and not is_weight(v)]

    def _is_huge_constant(self, value: ir.Value) -> bool:
        array = _magnitudes(value)
        return bool(((array > self._limit) & (array < float("inf"))).any())

    def _is_tiny_constant(self, value: ir.Value) -> bool:
        array = _magnitudes(value)
        return bool(array.any() and array.max() < self._least)


def _magnitudes(value: ir.Value) -> np.ndarray:
    """The absolute values of a constant; none where it is no constant, or a weight by its size."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _MOST_ELEMENTS:
        return np.zeros(0, np.float32)
    return np.abs(tensor.numpy())


def moves(node: ir.Node) -> bool:
    """Whether a node only moves elements, or is a Cast to float32, which can give the half type."""
    if node.domain != "":
        return False
    if node.op_type == "Cast":
        return node.outputs[0].dtype == ir.DataType.FLOAT
    return node.op_type in MOVEMENT


def indifferent(node: ir.Node) -> bool:
    """Whether a node takes any float type and gives the same."""
    if node.domain != "":
        return False
    if node.op_type == "Cast":
        return node.outputs[0].dtype != ir.DataType.FLOAT
    return node.op_type in INDIFFERENT


def float_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The float32 values that a node reads."""
    for value in node.inputs:
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield value


def is_weight(value: ir.Value) -> bool:
    """Whether a value is an initializer whose data is fixed."""
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def exists_in(node: ir.Node, dtype: ir.DataType) -> bool:
    """Whether ONNX defines a node's op for a float type wherever it does for float32."""
    return _op_exists_in(node.op_type, f"tensor({dtype.name.lower()})")


@functools.cache
def _op_exists_in(op_type: str, type_name: str) -> bool:
    schema = onnx.defs.get_schema(op_type, OPSET)
    allowed = (c.allowed_type_strs for c in schema.type_constraints)
    return all(type_name in types for types in allowed if "tensor(float)" in types)


def _starts_exact(node: ir.Node) -> bool:
    if node.domain == "" and node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and not (source.dtype or ir.DataType.FLOAT).is_floating_point()
    return node.op_type in _SOURCES
