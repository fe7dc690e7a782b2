"""Folds look-ups, sines and cosines of consecutive positions into slices of a constant table."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph, range_of
from omnigraph.passes.analysis.index import (
    Coordinate,
    Emitter,
    Expression,
    IndexReader,
    Length,
    Linear,
    NotClosed,
    compute,
    coordinate,
    coordinates,
    data,
    inside,
    lengths,
    substitute,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import nodes_of, remove_unused, replace_output, through
from omnigraph.passes.site_pass import Miss

#: Ops between a sine and the end of the table that is folded.
_CARRIES = ("Mul", "Cast", "Unsqueeze", "Squeeze", "Concat", "Reshape", "Transpose", "Identity")


def table_sites(graph: Graph) -> Iterator[ir.Node]:
    """Every Gather from a table of numbers by computed positions, and every Sin and Cos."""
    for node in nodes_of(graph, "Gather", "Sin", "Cos"):
        if node.op_type == "Gather":
            table, index = node.inputs
            tensor = ir.convenience.get_const_tensor(table) if table is not None else None
            if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2:
                continue
            if node.attributes.get_int("axis", 0) or index is None or _is_given(index):
                continue
        yield node


def _is_given(index: ir.Value) -> bool:
    """Whether an index is an input of the Graph or a constant, such as token ids, in any shape."""
    given = through(index, "Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity")
    assert given is not None
    return given.producer() is None or ir.convenience.get_const_tensor(given) is not None


def largest(graph: Graph, length: Linear) -> int | None:
    """The largest number of a length by the declared ranges; None if it has no bound."""
    total = length.constant
    for one, factor in length.terms:
        most = range_of(graph, one.name)[1] if isinstance(one, Length) else None
        if most is None or factor < 0:
            return None
        total += factor * most
    return total


def fold_table(graph: Graph, node: ir.Node, budget: int) -> str:
    """Replace a node by a Slice of a constant.

    Raises:
        Miss: its positions are not consecutive, depend on data, or have no bound.
    """
    reader = IndexReader()
    try:
        if node.op_type == "Gather":
            return _slice_gather(graph, node, reader)
        return _slice_waves(graph, node, reader, budget)
    except NotClosed as error:
        raise Miss(f"the positions are no formula: {error}", error.at) from error


def _slice_gather(graph: Graph, node: ir.Node, reader: IndexReader) -> str:
    table, index = node.inputs
    dims = reader.dims(index)
    expression = reader.element(index, _places(dims))
    axis = _one_axis(expression)
    start = expression - coordinate(f"t{axis}") if isinstance(expression, Linear) else None
    if start is None or coordinates(start) or any(d != Linear(1) for d in _but(dims, axis)):
        raise Miss("the positions are not consecutive", node)
    size = dims[axis]
    assert size is not None and table is not None
    tensor = ir.convenience.get_const_tensor(table)
    assert tensor is not None
    width = tensor.shape.numpy()[1]
    before = Inserter(node)
    sliced = _sliced(table, 0, start, size, graph, before)
    _shaped(sliced, [*dims, Linear(width)], graph, before, node)
    return f"a slice of {table.name!r} from {start}"


def _slice_waves(graph: Graph, node: ir.Node, reader: IndexReader, budget: int) -> str:
    value = _whole_table(node, reader)
    dims = reader.dims(value)
    expression = reader.element(value, _places(dims))
    axis = _position_axis(expression, dims)
    start = _start(expression, f"t{axis}")
    moved = substitute(expression, {f"t{axis}": coordinate(f"t{axis}") - start})
    if lengths(moved):
        raise Miss("the angles depend on a length", node)
    others = [None if dim is None or dim.terms else dim.constant for dim in _but(dims, axis)]
    size = dims[axis]
    assert size is not None
    rows = largest(graph, size + start)
    if rows is None or None in others:
        raise Miss(f"there is no declared maximum of {size + start}", node)
    shape = [1 if dim is None else dim.constant for dim in dims]
    shape[axis] = rows
    if prod(shape) * expression.type.numpy().itemsize > budget:
        raise Miss(f"a table of {rows} positions does not fit in {budget} bytes", node)
    axes = [np.arange(n).reshape([-1] + [1] * (len(shape) - 1 - a)) for a, n in enumerate(shape)]
    array = compute(moved, {f"t{a}": places for a, places in enumerate(axes)})
    producer = value.producer()
    assert producer is not None
    before = Inserter(producer)
    table = before.constant(np.ascontiguousarray(np.broadcast_to(array, shape)))
    sliced = _sliced(table, axis, start, size, graph, before)
    _shaped(sliced, list(dims), graph, before, producer)
    return f"a slice of a table of {rows} positions from {start}"


def _whole_table(node: ir.Node, reader: IndexReader) -> ir.Value:
    """The last value after a Sin or Cos that still depends on positions alone."""
    value = node.outputs[0]
    if read := data(reader.element(value, _places(reader.dims(value)))):
        names = ", ".join(sorted(repr(one.name) for one in read))
        raise Miss(f"the positions depend on data: {names}", node)
    while len(value.uses()) == 1 and not value.is_graph_output():
        user = next(iter(value.uses())).node
        if user.domain or user.op_type not in _CARRIES:
            break
        after = user.outputs[0]
        if data(reader.element(after, _places(reader.dims(after)))):
            break
        value = after
    return value


def _places(dims: tuple[Linear | None, ...]) -> tuple[Linear, ...]:
    sizes = [None if dim is None or dim.terms else dim.constant for dim in dims]
    return tuple(coordinate(f"t{axis}", size) for axis, size in enumerate(sizes))


def _but(dims: tuple[Linear | None, ...], axis: int) -> list[Linear | None]:
    return [dim for other, dim in enumerate(dims) if other != axis]


def _one_axis(expression: Expression) -> int:
    if read := data(expression):
        names = ", ".join(sorted(repr(one.name) for one in read))
        raise Miss(f"the positions depend on data: {names}")
    here = coordinates(expression)
    if len(here) != 1:
        raise Miss("the positions are not along one axis")
    return int(next(iter(here))[1:])


def _position_axis(expression: Expression, dims: tuple[Linear | None, ...]) -> int:
    """The one axis whose size is symbolic."""
    axes = [axis for axis, dim in enumerate(dims) if dim is None or dim.terms]
    if len(axes) != 1 or f"t{axes[0]}" not in coordinates(expression):
        raise Miss("the positions are not along one axis")
    return axes[0]


def _start(expression: Expression, name: str) -> Linear:
    """The number that is added to a coordinate everywhere in an expression."""
    for one in inside(expression):
        if isinstance(one, Linear) and one.of(_coordinate(one, name)) == 1:
            return Linear(0, tuple((t, f) for t, f in one.terms if isinstance(t, Length)))
    return Linear(0)


def _coordinate(linear: Linear, name: str) -> Expression:
    for term, _ in linear.terms:
        if isinstance(term, Coordinate) and term.name == name:
            return term
    return linear


def _sliced(
    table: ir.Value, axis: int, start: Linear, size: Linear, graph: Graph, before: Inserter
) -> ir.Value:
    emitter, zero = Emitter(before, graph.graph, {}), before.integers(0)
    ends = [before.op("Unsqueeze", emitter.emit(x), zero) for x in (start, start + size)]
    return before.op("Slice", table, *ends, before.integers(axis), before.integers(1))


def _shaped(
    sliced: ir.Value, dims: list[Linear | None], graph: Graph, before: Inserter, old: ir.Node
) -> None:
    """Reshape the slice to the old shape, and replace the old value by it.

    The Reshape makes positions beyond the table an error.
    """
    emitter, zero = Emitter(before, graph.graph, {}), before.integers(0)
    sizes = [before.op("Unsqueeze", emitter.emit(dim), zero) for dim in dims if dim is not None]
    shaped = before.op("Reshape", sliced, before.op("Concat", *sizes, axis=0))
    shaped.shape = old.outputs[0].shape
    replace_output(old.outputs[0], shaped)
    remove_unused(old)
