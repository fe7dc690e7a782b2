"""How a cut goes through each op: from an axis of what it gives to axes of what it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.pruning.axis_map import Cut, axis_through_reshape, rank_of, size_of
from omnigraph.passes.matching import constant, input_at
from omnigraph.passes.site_pass import Miss

if TYPE_CHECKING:
    from omnigraph.passes.analysis.pruning.axis_slice import Cutter

#: The node over cut inputs; or, where it goes, the value in its place.
Rule = Callable[["Cutter", ir.Node, ir.Value, Cut], ir.Node | ir.Value]

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


def _elementwise(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    inputs = [cutter.aligned(v, cut, rank_of(value)) for v in node.inputs]
    return cutter.remake(node, cut, inputs)


def _normalizing(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    axis = node.attributes.get_int("axis", -1) or 0
    first = axis if axis >= 0 else axis + rank_of(value)
    if cut.axis >= first:
        raise Miss(f"{node.op_type} mixes the heads", at=node)
    source = node.inputs[0]
    assert source is not None
    return cutter.remake(node, cut, [cutter.cut(source, cut), *node.inputs[1:]])


def _transpose(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    perm = node.attributes.get_ints("perm") or tuple(reversed(range(rank_of(value))))
    return cutter.remake(node, cut, [cutter.first(node, Cut(perm[cut.axis], cut.kept))])


def _reshape(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    source = node.inputs[0]
    assert source is not None
    before = axis_through_reshape(value, source, cut.axis, cut.kept)
    if before is None:
        raise Miss("a Reshape mixes heads with another axis", at=node)
    shape = cutter.shape_of(node, cut)
    return cutter.remake(node, cut, [cutter.cut(source, Cut(*before)), shape])


def _expand(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    source = cutter.aligned(node.inputs[0], cut, rank_of(value))
    return cutter.remake(node, cut, [source, cutter.shape_of(node, cut)])


def _unsqueeze(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    axes = _axes(node, rank_of(value))
    if cut.axis in axes:
        raise Miss("heads are an axis of size 1", at=node)
    before = cut.axis - sum(axis < cut.axis for axis in axes)
    return cutter.remake(node, cut, [cutter.first(node, Cut(before, cut.kept)), *node.inputs[1:]])


def _squeeze(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    source = node.inputs[0]
    gone = _axes(node, rank_of(source))
    left = [axis for axis in range(rank_of(source)) if axis not in gone]
    before = Cut(left[cut.axis], cut.kept)
    return cutter.remake(node, cut, [cutter.first(node, before), *node.inputs[1:]])


def _matmul(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    left, right = node.inputs
    assert left is not None and right is not None
    rank = rank_of(value)
    inputs: list[ir.Value | None]
    if cut.axis == rank - 1:
        inputs = [left, cutter.cut(right, Cut(rank_of(right) - 1, cut.kept))]
    elif cut.axis == rank - 2:
        inputs = [cutter.cut(left, Cut(rank_of(left) - 2, cut.kept)), right]
    else:
        inputs = [cutter.aligned(left, cut, rank), cutter.aligned(right, cut, rank)]
    new = cutter.remake(node, cut, inputs)
    cutter.projections.add(node)
    return new


def _gemm(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    left, right = node.inputs[:2]
    assert left is not None and right is not None
    bias = cutter.aligned(input_at(node, 2), cut, 2)
    if cut.axis == 1:
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        right = cutter.cut(right, Cut(axis, cut.kept))
    else:
        left = cutter.cut(left, Cut(1 if node.attributes.get_int("transA", 0) else 0, cut.kept))
    new = cutter.remake(node, cut, [left, right, bias] if bias is not None else [left, right])
    cutter.projections.add(node)
    return new


def _slice(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node | ir.Value:
    source = node.inputs[0]
    starts, ends, axes, steps = (
        constant(input_at(node, i)) if input_at(node, i) is not None else None for i in range(1, 5)
    )
    places = range(len(starts)) if starts is not None and axes is None else axes
    if places is None:
        raise Miss("the axes of a Slice are not constant", at=node)
    sliced = [int(axis) % rank_of(value) for axis in places]
    if cut.axis not in sliced:
        return cutter.remake(node, cut, [cutter.first(node, cut), *node.inputs[1:]])
    if starts is None or ends is None or len(sliced) != 1:
        raise Miss("the ends of a Slice of heads are not constant", at=node)
    step = 1 if steps is None else int(steps[0])
    size = size_of(source, cut.axis)
    whole = range(size)[int(starts[0]) : int(np.clip(ends[0], -size - 1, size)) : step]
    # A part of a packed product becomes a product of its own, of the heads that are kept.
    return cutter.first(node, Cut(cut.axis, tuple(whole[i] for i in cut.kept)))


def _split(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node | ir.Value:
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(value)
    if axis != cut.axis:
        return cutter.remake(node, cut, [cutter.first(node, cut), *node.inputs[1:]])
    offset = sum(size_of(o, axis) for o in node.outputs[: value.index() or 0])
    return cutter.first(node, Cut(axis, tuple(offset + i for i in cut.kept)))


def _concat(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(value)
    inputs: list[ir.Value | None] = []
    if axis != cut.axis:
        inputs = [cutter.cut(v, cut) for v in node.inputs if v is not None]
        return cutter.remake(node, cut, inputs)
    offset = 0
    for part in node.inputs:
        assert part is not None
        size = size_of(part, axis)
        kept = tuple(i - offset for i in cut.kept if offset <= i < offset + size)
        offset += size
        if kept:
            inputs.append(cutter.cut(part, Cut(axis, kept)))
    return cutter.remake(node, cut, inputs)


def _gather(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    data, indices = node.inputs
    assert data is not None and indices is not None
    axis = (node.attributes.get_int("axis", 0) or 0) % rank_of(data)
    if axis <= cut.axis < axis + rank_of(indices):
        indices = cutter.cut(indices, Cut(cut.axis - axis, cut.kept))
    else:
        before = cut.axis if cut.axis < axis else cut.axis - rank_of(indices) + 1
        data = cutter.cut(data, Cut(before, cut.kept))
    return cutter.remake(node, cut, [data, indices])


def _tensor_scatter(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    axis = (node.attributes.get_int("axis", -2) or 0) % rank_of(value)
    if cut.axis in (0, axis):
        raise Miss("heads are the axis that is written to", at=node)
    past, update = (cutter.cut(v, cut) for v in node.inputs[:2] if v is not None)
    return cutter.remake(node, cut, [past, update, *node.inputs[2:]])


def _rotary(cutter: Cutter, node: ir.Node, value: ir.Value, cut: Cut) -> ir.Node:
    attributes = dict(node.attributes.items())
    heads = node.attributes.get_int("num_heads", 0) or 0
    if rank_of(value) == 3:
        width = size_of(value, 2) // heads if heads else 0
        if cut.axis != 2 or not width or len(cut.kept) % width:
            raise Miss("RotaryEmbedding does not say how many heads it turns", at=node)
        attributes["num_heads"] = ir.AttrInt64("num_heads", len(cut.kept) // width)
    elif cut.axis != 1:
        raise Miss("RotaryEmbedding mixes the heads", at=node)
    elif heads:
        attributes["num_heads"] = ir.AttrInt64("num_heads", len(cut.kept))
    return cutter.remake(node, cut, [cutter.first(node, cut), *node.inputs[1:]], attributes)


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
