"""The cosines and sines of a RotaryEmbedding: half of a table with two of each, for the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    constant,
    input_at,
    made_by,
    rank,
    same_dim,
    scalar,
)

#: Makes half of a value before some node.
Half = Callable[[Inserter], ir.Value]

#: Tables up to this many elements are read to compare their halves.
_MOST_ELEMENTS = 1 << 24
_ELEMENTWISE = ("Cos", "Sin", "Cast", "Neg", "Identity")


def half_of(value: ir.Value | None, interleaved: bool) -> Half | None:
    """How to make half of the last axis of a value, where the other half is known to be equal.

    Args:
        value: [..., R], such as the cosines of angles that were concatenated with themselves.
        interleaved: whether equal numbers are neighbours; else they are R/2 apart.

    Returns:
        A function that makes [..., R/2]; None where the halves are not known to be equal.
    """
    if value is None or (axis_size(value, -1) or 1) % 2:
        return None
    for rule in (_of_constant, _of_repetition, _of_elementwise, _of_product, _of_view):
        if (half := rule(value, interleaved)) is not None:
            return half
    return None


def repeat_for_batch(graph: Graph, before: Inserter, value: ir.Value, x: ir.Value) -> ir.Value:
    """Repeat caches [1, T, R/2] or positions [1, T] for the batch of x [B, ...].

    The size of the batch is read from an input of the Graph where one has it, so that all layers
    read the same value.
    """
    assert x.shape is not None and value.shape is not None
    batch, ones = x.shape[0], [1] * (len(value.shape) - 1)
    if isinstance(batch, int):
        shape = before.integers(batch, *ones)
    else:
        source, axis = _where(graph, batch) or (x, 0)
        size = before.op("Shape", source, start=axis, end=axis + 1)
        shape = before.op("Concat", size, before.integers(*ones), axis=0)
    repeated = before.op("Expand", value, shape)
    repeated.shape = ir.Shape([batch, *value.shape[1:]])
    return repeated


def _where(graph: Graph, dim: ir.SymbolicDim) -> tuple[ir.Value, int] | None:
    for value in graph.graph.inputs:
        for axis, other in enumerate(value.shape or ()):
            if same_dim(dim, other):
                return value, axis
    return None


# Which halves are equal ---------------------------------------------------------------------------


def _of_constant(value: ir.Value, interleaved: bool) -> Half | None:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _MOST_ELEMENTS or not tensor.shape:
        return None
    array = tensor.numpy()
    size = array.shape[-1] // 2
    one = array[..., ::2] if interleaved else array[..., :size]
    other = array[..., 1::2] if interleaved else array[..., size:]
    if not np.array_equal(one, other):
        return None
    start, stop, last = 0, array.shape[-1] if interleaved else size, -1

    def make(before: Inserter) -> ir.Value:
        step = before.integers(2 if interleaved else 1)
        bounds = before.integers(start), before.integers(stop), before.integers(last)
        return before.op("Slice", value, *bounds, step)

    return make


def _of_repetition(value: ir.Value, interleaved: bool) -> Half | None:
    """Half of a value with itself: Concat(a, a), or Expand and Reshape of [..., R/2, 1]."""
    node = made_by(value, "Reshape" if interleaved else "Concat")
    if node is None:
        return None
    if not interleaved:
        one = node.inputs[0]
        last = node.attributes.get_int("axis", 0) in (-1, (rank(value) or 0) - 1)
        twice = len(node.inputs) == 2 and one is node.inputs[1]
        return _just(one) if last and twice else None
    pairs = node.inputs[0]
    repeated = made_by(pairs, "Expand", "Concat")
    if repeated is None or len(set(repeated.inputs)) != (2 if repeated.op_type == "Expand" else 1):
        return None
    lifted = made_by(repeated.inputs[0], "Unsqueeze")
    source = lifted.inputs[0] if lifted is not None else None
    if source is None or pairs is None or source.shape is None or pairs.shape is None:
        return None
    if axis_size(repeated.inputs[0], -1) != 1 or axis_size(pairs, -1) != 2:
        return None
    whole = [*source.shape[:-1], 2 * (axis_size(source, -1) or 0)]
    if not _same_dims(source.shape, pairs.shape[:-1]) or not _same_dims(value.shape, whole):
        return None
    return _just(source)


def _of_elementwise(value: ir.Value, interleaved: bool) -> Half | None:
    node = made_by(value, *_ELEMENTWISE)
    half = half_of(node.inputs[0], interleaved) if node is not None else None
    if node is None or half is None:
        return None
    return _again(node, half)


def _of_product(value: ir.Value, interleaved: bool) -> Half | None:
    """Half of a product, quotient or sum of values with halves, or with one number on the axis."""
    node = made_by(value, "Mul", "Div", "Add", "Sub")
    if node is None:
        return None
    one, other = node.inputs
    if node.op_type == "Mul" and 1.0 in (scalar(one), scalar(other)):
        kept = one if scalar(other) == 1.0 else other
        return half_of(kept, interleaved) if rank(kept) == rank(value) else None
    halves = []
    for operand in node.inputs:
        same = rank(operand) == 0 or axis_size(operand, -1) == 1
        half = _just(operand) if same else half_of(operand, interleaved)
        if half is None:
            return None
        halves.append(half)
    return lambda before: before.op(node.op_type, *(half(before) for half in halves))


def _of_view(value: ir.Value, interleaved: bool) -> Half | None:
    """Half of a view or a selection along other axes, such as rows of a table by position."""
    node = made_by(value, "Unsqueeze", "Squeeze", "Slice", "Gather", "GatherND", "Transpose")
    source = node.inputs[0] if node is not None else None
    if node is None or source is None or not _keeps_last_axis(node, source):
        return None
    half = half_of(source, interleaved)
    return None if half is None else _again(node, half)


def _keeps_last_axis(node: ir.Node, source: ir.Value) -> bool:
    dims, out = rank(source), rank(node.outputs[0])
    if dims is None or out is None:
        return False
    if node.op_type == "Gather":
        return dims > 1 and node.attributes.get_int("axis", 0) not in (-1, dims - 1)
    if node.op_type == "GatherND":
        batched, index = node.attributes.get_int("batch_dims", 0), axis_size(node.inputs[1], -1)
        return not batched and index is not None and index < dims
    if node.op_type == "Transpose":
        return node.attributes.get_ints("perm", [0])[-1] == dims - 1
    index = 3 if node.op_type == "Slice" else 1
    axes = constant(input_at(node, index))
    of = out if node.op_type == "Unsqueeze" else dims
    return axes is not None and not {-1, of - 1} & set(axes.reshape(-1).tolist())


def _same_dims(one: ir.Shape | None, other: Sequence[int | ir.SymbolicDim]) -> bool:
    return one is not None and len(one) == len(other) and all(map(same_dim, one, other))


def _just(value: ir.Value | None) -> Half | None:
    return None if value is None else lambda before: value


def _again(node: ir.Node, half: Half) -> Half:
    """The same node over half of its first input."""
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return lambda before: before.op(node.op_type, half(before), *node.inputs[1:], **attributes)
