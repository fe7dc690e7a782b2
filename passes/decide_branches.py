"""Decides branches on sizes that the ranges of the dimensions settle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from omnigraph.graph import Graph, range_of
from omnigraph.passes.base import Pass
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import constant, made_by, nodes_of, scalar, standard
from omnigraph.program import dim_terms, evaluate_dim

#: Where a range has no end. Sizes only grow, so what is the same up to here is always the same.
_LARGE = 1 << 20
#: Ops whose result is no shorter on any axis where their inputs are longer.
_GROWING = frozenset(
    "Abs Add AveragePool BatchNormalization Cast Clip Concat Constant Conv Div Dropout Erf Exp "
    "Gelu Identity LayerNormalization LeakyRelu Log MaxPool Mul Neg Pad Pow Relu Sigmoid Slice "
    "Softmax Softplus Sqrt Squeeze Sub Tanh Transpose Unsqueeze".split()
)
#: For each value by name, its shape at the least and at the greatest sizes.
_Shapes = Mapping[str, ir.Shape]


@dataclass(frozen=True)
class DecideBranches(Pass):
    """Replace an If on a size by the branch that is taken at every size.

    before, with T from 192 to 703::

        c = Conv[strides=[512]](x [1, 1, T])             # so its length is 1
        y = If(Equal(Gather(Shape(c), -1), 1)) { Squeeze(c, -1) } else { Identity(c) }

    after::

        y = Squeeze(Conv[strides=[512]](x), -1)

    A ``squeeze(-1)`` of torch becomes such an If where its exporter did not know the length. Its
    branches differ in rank, which OpenVINO does not take. Shapes are inferred with every dimension
    at its least, and at its greatest: sizes that only grow with the dimensions lie between.

    Needs: ranges of the dimensions. Leaves alone: Graphs without an If, and sizes that come from
    the input through an op that may shorten a longer input.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        changed = False
        while next(nodes_of(graph, "If"), None) is not None and _decide_sizes(graph):
            FoldConstants().apply(graph)
            changed = True
        return changed


def _decide_sizes(graph: Graph) -> bool:
    """Make constants of the sizes, and the comparisons of sizes, that are the same everywhere."""
    least, most = (_shapes_at(graph, end) for end in (0, 1))
    changed = False
    for node in list(nodes_of(graph, "Gather")):
        ends = _ends(node, least, most) if node.outputs[0].uses() else None
        if ends is None:
            continue
        low, high = ends
        if low == high:
            changed |= _replace(node, np.full(_shape(node), low, np.int64))
            continue
        for user, side in list(node.outputs[0].uses()):
            number = scalar(user.inputs[1 - side]) if standard(user, "Equal") else None
            if number is not None and user.outputs[0].uses() and not low <= number <= high:
                changed |= _replace(user, np.full(max(_shape(user), _shape(node)), False))
    return changed


def _ends(node: ir.Node, least: _Shapes, most: _Shapes) -> tuple[int, int] | None:
    """The least and the greatest size that a Gather takes from a shape."""
    shape, axis = made_by(node.inputs[0], "Shape"), scalar(node.inputs[1])
    if shape is None or axis is None or shape.attributes:
        return None
    value = shape.inputs[0]
    assert value is not None
    found = [shapes.get(value.name or "") for shapes in (least, most)]
    if any(s is None or not -len(s) <= axis < len(s) for s in found) or not _grows(value):
        return None
    low, high = (s[int(axis)] for s in found if s is not None)
    return (low, high) if isinstance(low, int) and isinstance(high, int) else None


def _grows(value: ir.Value) -> bool:
    """Whether the sizes of a value only grow with those of the inputs."""
    pending, seen = [value], set()
    while pending:
        value = pending.pop()
        if value in seen or value.const_value is not None or value.is_graph_input():
            continue
        seen.add(value)
        node = value.producer()
        if not standard(node, *_GROWING):
            return False
        assert node is not None
        kernel = node.inputs[1] if node.op_type == "Conv" else None
        if kernel is not None and kernel.const_value is None:
            return False  # a longer kernel leaves less
        pending += [given for given in node.inputs if given is not None]
    return True


def _shapes_at(graph: Graph, end: int) -> _Shapes:
    """The shape of each value by name, with every dimension at one end of its range."""
    copy = graph.clone()
    for node in ir.traversal.RecursiveGraphIterator(copy.graph):
        for value in node.outputs:
            value.shape = None
    for value in copy.graph.inputs:
        sizes = [_at(graph, dim, end) for dim in value.shape or ()]
        value.shape = None if value.shape is None else ir.Shape(sizes)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    nodes = ir.traversal.RecursiveGraphIterator(copy.graph)
    made = {v.name or "": v.shape for node in nodes for v in node.outputs}
    made |= {value.name or "": value.shape for value in copy.graph.inputs}
    return {name: shape for name, shape in made.items() if shape is not None}


def _at(graph: Graph, dim: int | ir.SymbolicDim, end: int) -> int | ir.SymbolicDim:
    if isinstance(dim, int) or dim.value is None:
        return dim
    sizes = {}
    for name in dim_terms(dim.value):
        least, most = range_of(graph, name)
        sizes[name] = least if end == 0 else _LARGE if most is None else most
    return evaluate_dim(dim.value, sizes)


def _shape(node: ir.Node) -> tuple[int, ...]:
    """The shape that an elementwise node of constants, or a Gather of an axis, gives."""
    constants = (constant(value) for value in node.inputs)
    return max((array.shape for array in constants if array is not None), default=())


def _replace(node: ir.Node, array: np.ndarray) -> bool:
    ir.convenience.replace_all_uses_with(node.outputs[0], Inserter(node).constant(array))
    return True
