"""One rule for each op: a slice of the op's output, as slices of its inputs.

A rule only looks at the node. `AxisSlicer` follows the inputs and makes the new nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.pruning.axis_slice import (
    AxisSlice,
    axis_through_reshape,
    rank_of,
    size_of,
)
from omnigraph.passes.matching import constant, input_at
from omnigraph.passes.site_pass import Miss


class Computed(Enum):
    """An input that is not a slice of the old one."""

    SHAPE = "the shape of the sliced output"


@dataclass(frozen=True)
class SameNode:
    """The same node over sliced inputs gives the slice.

    Args:
        inputs: what the node reads instead, by position, in the order in which it is made; the
            other inputs stay as they are.
        dropped: the positions of inputs that the node no longer reads.
        attributes: the attributes that change.
        is_product: whether the node is a product, which the sliced product replaces.
    """

    inputs: Mapping[int, AxisSlice | Computed]
    dropped: tuple[int, ...] = ()
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)
    is_product: bool = False


@dataclass(frozen=True)
class FirstInput:
    """A slice of the node's first input is the slice; the node itself is not needed."""

    axis_slice: AxisSlice


#: Takes the node, the output to slice, and the slice. Raises Miss where the op mixes the elements.
Rule = Callable[[ir.Node, ir.Value, AxisSlice], SameNode | FirstInput]

#: Ops of one input or several whose axes are aligned from the right, as numpy does.
_ELEMENTWISE = frozenset(
    "Abs Add And Cast Ceil Clip Cos Div Equal Erf Exp Floor Gelu Greater GreaterOrEqual Identity "
    "IsInf IsNaN Less LessOrEqual Log Max Min Mul Neg Not Or Pow Reciprocal Relu Round Sigmoid "
    "Sign Sin Softplus Sqrt Sub Swish Tanh Where".split()
)
#: Ops that work on the last axes, and leave those before ``axis`` alone.
_NORMALIZING = frozenset(
    "LayerNormalization LogSoftmax LpNormalization RMSNormalization Softmax".split()
)


def rule_for(op_type: str) -> Rule | None:
    """The rule of an op of the standard, if it has one."""
    if op_type in _ELEMENTWISE:
        return _elementwise
    if op_type in _NORMALIZING:
        return _normalizing
    return _RULES.get(op_type)


def _elementwise(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    return SameNode(_aligned(node, range(len(node.inputs)), axis_slice, rank_of(value)))


def _aligned(
    node: ir.Node, positions: range | tuple[int, ...], axis_slice: AxisSlice, rank: int
) -> dict[int, AxisSlice | Computed]:
    """Slices of inputs that are broadcast to ``rank`` axes; one of size 1 there stays whole."""
    inputs: dict[int, AxisSlice | Computed] = {}
    for position in positions:
        value = input_at(node, position)
        if value is None:
            continue
        axis = axis_slice.axis - (rank - rank_of(value))
        if axis >= 0 and size_of(value, axis) != 1:
            inputs[position] = AxisSlice(axis, axis_slice.kept)
    return inputs


def _normalizing(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    axis = node.attributes.get_int("axis", -1) or 0
    first = axis if axis >= 0 else axis + rank_of(value)
    if axis_slice.axis >= first:
        raise Miss(f"{node.op_type} mixes the heads", at=node)
    return SameNode({0: axis_slice})


def _transpose(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    perm = node.attributes.get_ints("perm") or tuple(reversed(range(rank_of(value))))
    return SameNode({0: AxisSlice(perm[axis_slice.axis], axis_slice.kept)})


def _reshape(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    source = node.inputs[0]
    assert source is not None
    before = axis_through_reshape(value, source, axis_slice.axis, axis_slice.kept)
    if before is None:
        raise Miss("a Reshape mixes heads with another axis", at=node)
    return SameNode({1: Computed.SHAPE, 0: AxisSlice(*before)})


def _expand(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    return SameNode({**_aligned(node, (0,), axis_slice, rank_of(value)), 1: Computed.SHAPE})


def _unsqueeze(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    axes = _axes(node, rank_of(value))
    if axis_slice.axis in axes:
        raise Miss("heads are an axis of size 1", at=node)
    before = axis_slice.axis - sum(axis < axis_slice.axis for axis in axes)
    return SameNode({0: AxisSlice(before, axis_slice.kept)})


def _squeeze(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    source = node.inputs[0]
    gone = _axes(node, rank_of(source))
    left = [axis for axis in range(rank_of(source)) if axis not in gone]
    return SameNode({0: AxisSlice(left[axis_slice.axis], axis_slice.kept)})


def _matmul(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    rank = rank_of(value)
    inputs: dict[int, AxisSlice | Computed]
    if axis_slice.axis == rank - 1:
        inputs = {1: AxisSlice(rank_of(node.inputs[1]) - 1, axis_slice.kept)}
    elif axis_slice.axis == rank - 2:
        inputs = {0: AxisSlice(rank_of(node.inputs[0]) - 2, axis_slice.kept)}
    else:
        inputs = _aligned(node, (0, 1), axis_slice, rank)
    return SameNode(inputs, is_product=True)


def _gemm(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    inputs = _aligned(node, (2,), axis_slice, 2)
    if axis_slice.axis == 1:
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        inputs[1] = AxisSlice(axis, axis_slice.kept)
    else:
        axis = 1 if node.attributes.get_int("transA", 0) else 0
        inputs[0] = AxisSlice(axis, axis_slice.kept)
    return SameNode(inputs, is_product=True)


def _slice(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode | FirstInput:
    source = node.inputs[0]
    starts, ends, axes, steps = (
        constant(input_at(node, i)) if input_at(node, i) is not None else None for i in range(1, 5)
    )
    places = range(len(starts)) if starts is not None and axes is None else axes
    if places is None:
        raise Miss("the axes of a Slice are not constant", at=node)
    sliced = [int(axis) % rank_of(value) for axis in places]
    if axis_slice.axis not in sliced:
        return SameNode({0: axis_slice})
    if starts is None or ends is None or len(sliced) != 1:
        raise Miss("the ends of a Slice of heads are not constant", at=node)
    step = 1 if steps is None else int(steps[0])
    size = size_of(source, axis_slice.axis)
    whole = range(size)[int(starts[0]) : int(np.clip(ends[0], -size - 1, size)) : step]
    # A part of a packed product becomes a product of its own, of the heads that are kept.
    return FirstInput(AxisSlice(axis_slice.axis, tuple(whole[i] for i in axis_slice.kept)))


def _split(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode | FirstInput:
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(value)
    if axis != axis_slice.axis:
        return SameNode({0: axis_slice})
    offset = sum(size_of(o, axis) for o in node.outputs[: value.index() or 0])
    return FirstInput(AxisSlice(axis, tuple(offset + i for i in axis_slice.kept)))


def _concat(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(value)
    if axis != axis_slice.axis:
        return SameNode(dict.fromkeys(range(len(node.inputs)), axis_slice))
    inputs: dict[int, AxisSlice | Computed] = {}
    offset = 0
    for position, part in enumerate(node.inputs):
        size = size_of(part, axis)
        kept = tuple(i - offset for i in axis_slice.kept if offset <= i < offset + size)
        offset += size
        if kept:
            inputs[position] = AxisSlice(axis, kept)
    return SameNode(inputs, tuple(i for i in range(len(node.inputs)) if i not in inputs))


def _gather(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    data, indices = node.inputs
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(data)
    if axis <= axis_slice.axis < axis + rank_of(indices):
        return SameNode({1: AxisSlice(axis_slice.axis - axis, axis_slice.kept)})
    before = axis_slice.axis
    if before >= axis:
        before -= rank_of(indices) - 1
    return SameNode({0: AxisSlice(before, axis_slice.kept)})


def _tensor_scatter(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    axis = (node.attributes.get_int("axis", -2) or 0) % rank_of(value)
    if axis_slice.axis in (0, axis):
        raise Miss("heads are the axis that is written to", at=node)
    return SameNode({0: axis_slice, 1: axis_slice})


def _rotary(node: ir.Node, value: ir.Value, axis_slice: AxisSlice) -> SameNode:
    heads = node.attributes.get_int("num_heads", 0) or 0
    kept = len(axis_slice.kept)
    if rank_of(value) == 3:
        width = size_of(value, 2) // heads if heads else 0
        if axis_slice.axis != 2 or not width or kept % width:
            raise Miss("RotaryEmbedding does not say how many heads it turns", at=node)
        kept //= width
    elif axis_slice.axis != 1:
        raise Miss("RotaryEmbedding mixes the heads", at=node)
    changed = {"num_heads": ir.AttrInt64("num_heads", kept)} if heads else {}
    return SameNode({0: axis_slice}, attributes=changed)


def _axes(node: ir.Node, rank: int) -> list[int]:
    """The axes of a Squeeze or an Unsqueeze, from the front."""
    axes = constant(input_at(node, 1))
    if axes is None:
        raise Miss(f"the axes of {node.op_type} are not constant", at=node)
    return [int(axis) % rank for axis in axes.reshape(-1)]


_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "TensorScatter": _tensor_scatter,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
