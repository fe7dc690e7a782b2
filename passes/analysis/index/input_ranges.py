"""The values that each input may have: rows of the tables it looks up, and finite numbers.

The ranges are for runtimes that read whatever lies past a table, or make a number of a NaN, and
answer. A value outside its range is one that the model itself fails on, or answers with NaN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.index.accepted import ALL, MOVES, Integers, accepted, common, union
from omnigraph.passes.analysis.index.dimensions import NotClosed
from omnigraph.passes.analysis.index.expression import Linear
from omnigraph.passes.analysis.index.reading import IndexReader
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.matching import made_by, scalar, standard
from omnigraph.program import TensorSpec

#: Ops with which a model looks for a NaN or an infinity itself.
_LOOKS_FOR_NAN = ("IsNaN", "IsInf")
#: Ops that take some elements of their first input.
_PARTS = ("Slice", "Split", "Gather", "Identity", "Squeeze", "Unsqueeze")


def with_ranges(
    graph: Graph, inputs: tuple[TensorSpec, ...], *, negative_rows: bool
) -> tuple[TensorSpec, ...]:
    """The inputs of a Graph with the least and the greatest value of each.

    An integer that is looked up in a table, by way of any moves, offsets and limits, is one of its
    rows. Where tables differ, it is a row of each; where parts of an input have tables of their
    own, a row of one of them. A float is no NaN and not positive infinity, unless the Graph asks
    that itself; negative infinity is left to additive masks.

    Args:
        graph: as traced, before any pass; it is not changed.
        inputs: a range that one of them already has is kept, or made narrower.
        negative_rows: whether a Gather counts negative rows from the end, as in ONNX. In torch, an
            embedding refuses them, and indexing (a GatherND) takes them.
    """
    graph = graph.clone()  # the weights are shared
    FoldConstants().apply(graph)  # which also infers shapes
    values = {value.name: value for value in graph.graph.inputs}
    lookups = list(_lookups(graph, negative_rows))
    found = []
    for spec in inputs:
        value = values.get(spec.name)
        if value is None or value.dtype is None:
            found.append(spec)
        elif value.dtype.is_integer():
            found.append(_of_rows(spec, value, lookups))
        elif spec.greatest is None and value.dtype.is_floating_point() and not _asked_for(value):
            found.append(replace(spec, greatest=_largest(value.dtype)))
        else:
            found.append(spec)
    return tuple(found)


def _of_rows(
    spec: TensorSpec, value: ir.Value, lookups: list[tuple[ir.Value, Integers]]
) -> TensorSpec:
    declared = (
        -inf if spec.least is None else spec.least,
        inf if spec.greatest is None else spec.greatest,
    )
    rows = common(_rows(value, lookups), _rows_of_parts(value, lookups))
    rows = common(rows, (declared,))
    if not rows:  # nothing is right: the model must mean something else
        return spec
    least, greatest = rows[0][0], rows[-1][1]
    return replace(
        spec,
        least=None if least == -inf else int(least),
        greatest=None if greatest == inf else int(greatest),
    )


def _rows(value: ir.Value, lookups: Sequence[tuple[ir.Value, Integers]]) -> Integers:
    """The integers that a value may hold for every lookup that it is in as a whole."""
    rows = ALL
    for index, wanted in lookups:
        rows = common(rows, accepted(index, wanted, value))
    return rows


def _rows_of_parts(value: ir.Value, lookups: Sequence[tuple[ir.Value, Integers]]) -> Integers:
    """The integers that some part of a value may hold, if it is read in parts alone.

    Columns that are looked up in tables of their own are such parts. What is not looked up may be
    any number, so one part of that kind leaves no range.
    """
    found: Integers = ()
    for node, position in value.uses():
        unread = node.op_type in _PARTS and not any(map(_is_read, node.outputs))
        if node.op_type == "Shape" or unread:
            continue
        if position != 0 or node.op_type not in _PARTS:
            return ALL
        for part in node.outputs:
            rows = common(_rows(part, lookups), _rows_of_parts(part, lookups))
            if rows == ALL:
                return ALL
            found = union(found, rows)
    return found or ALL


def _is_read(value: ir.Value) -> bool:
    """Whether more of a value is asked than its shape."""
    others = [node for node, _ in value.uses() if node.op_type != "Shape"]
    return value.is_graph_output() or any(
        n.op_type not in _PARTS or any(map(_is_read, n.outputs)) for n in others
    )


def _lookups(graph: Graph, negative_rows: bool) -> Iterator[tuple[ir.Value, Integers]]:
    """Each index into an axis of constant size, and the integers that it may be.

    Nodes of subgraphs are left out: what is not run looks nothing up.
    """
    for node in graph.graph:
        if standard(node, "Gather", "GatherElements", "ScatterElements"):
            size = _size(node.inputs[0], node.attributes.get_int("axis", 0))
            yield from _row(node.inputs[1], size, negative_rows)
        elif standard(node, "GatherND", "ScatterND"):
            yield from _tuples(node)
        elif standard(node, "OneHot") and not negative_rows:
            depth = scalar(node.inputs[1])  # in ONNX, what is no class is a row of zeros
            yield from _row(node.inputs[0], None if depth is None else int(depth), False)
        elif standard(node, "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"):
            ignored = node.attributes.get_int("ignore_index", None)
            for index, classes in _row(node.inputs[1], _size(node.inputs[0], 1), False):
                yield index, classes if ignored is None else union(classes, ((ignored, ignored),))


def _row(
    index: ir.Value | None, size: int | None, negative: bool
) -> Iterator[tuple[ir.Value, Integers]]:
    if index is not None and size is not None:
        yield index, ((-size if negative else 0, size - 1),)


def _tuples(node: ir.Node) -> Iterator[tuple[ir.Value, Integers]]:
    """The indices of a GatherND or ScatterND, whose last axis counts the axes that are indexed."""
    table, index = node.inputs[:2]
    count, first = _size(index, -1), node.attributes.get_int("batch_dims", 0)
    if count == 1:
        yield from _row(index, _size(table, first), True)
        return
    joined = made_by(index, "Concat")
    if joined is None or joined.attributes.get_int("axis", 0) not in (-1, len(_dims(index)) - 1):
        return
    if all(_size(part, -1) == 1 for part in joined.inputs):
        for axis, part in enumerate(joined.inputs):
            yield from _row(part, _size(table, first + axis), True)


def _size(value: ir.Value | None, axis: int) -> int | None:
    """The size of an axis, where it is a constant."""
    dims = _dims(value)
    size = dims[axis] if -len(dims) <= axis < len(dims) else None
    return size.constant if size is not None and not size.terms else None


def _dims(value: ir.Value | None) -> Sequence[Linear | None]:
    try:
        return IndexReader().dims(value)
    except NotClosed:
        return ()


def _asked_for(value: ir.Value) -> bool:
    """Whether the Graph itself asks if an element is a number."""
    waiting, seen = [value], {value}
    while waiting:
        for node, _ in waiting.pop().uses():
            if node.op_type in _LOOKS_FOR_NAN or _is_compared_with_itself(node):
                return True
            if node.op_type in MOVES or node.op_type in ("Cast", "Concat", "Slice", "Split"):
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                waiting += fresh
    return False


def _is_compared_with_itself(node: ir.Node) -> bool:
    return node.op_type == "Equal" and node.inputs[0] is node.inputs[1]


def _largest(dtype: ir.DataType) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype.numpy()).max)
