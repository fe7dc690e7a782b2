"""The forms of a position bias: each function tries one, and describes it, or returns None.

`FoldPositionBias` says in which order they are tried, and when each is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.attention.mask import AXES, HEAD, KEY, QUERY, separate
from omnigraph.passes.analysis.index import (
    Apply,
    Coordinate,
    Emitter,
    Expression,
    IndexReader,
    Linear,
    bounds,
    compute,
    coordinates,
    lengths,
)
from omnigraph.passes.analysis.position.bias import (
    HIDES_ALL,
    PositionBias,
    only_masks,
    slope_times_distance,
)
from omnigraph.passes.analysis.position.toeplitz import Sizes, Toeplitz, spanned
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import remove_unused, replace_output
from omnigraph.passes.site_pass import Miss

#: A number up to this does not change a number of `HIDES_ALL` that it is added to.
_SMALL = 1e20


@dataclass(frozen=True)
class Folding:
    """One bias to fold.

    Args:
        visible: predicates that hold wherever the bias is used.
        budget: the most bytes of a constant.
        longest: the most keys; None if there is no bound.
        roundable: the largest number at which a score may be rounded.
        rows_of_products: whether a slope times a distance may become a Toeplitz matrix.
    """

    graph: Graph
    bias: PositionBias
    visible: tuple[Expression, ...]
    budget: int
    longest: int | None
    roundable: float
    rows_of_products: bool = False

    @property
    def heads(self) -> int:
        """The number of heads of the bias."""
        heads = self.bias.heads
        assert heads is not None
        return heads

    @property
    def expression(self) -> Expression:
        """An element of the bias."""
        return self.bias.expression

    @property
    def sizes(self) -> Sizes:
        """The numbers of queries and keys."""
        return Sizes(self.bias.dims[2], self.bias.dims[3])

    @property
    def by_head(self) -> dict[str, np.ndarray]:
        """The heads, as the first of three axes."""
        return {HEAD: np.arange(self.heads).reshape(-1, 1, 1)}

    def inserter(self) -> Inserter:
        """Inserts before the old nodes, which other masks may read too."""
        return Inserter(self.bias.value.producer() or self.bias.user)

    def put(self, new: ir.Value, most: float, rows: bool = True) -> None:
        """Replace the old value by the new one.

        Args:
            most: the largest magnitude of the new value.
            rows: whether the new value has all rows; else it has one row for each head.
        """
        old, shape = self.bias.value.producer(), self.bias.value.shape
        if shape is not None and rows:
            new.shape = shape.copy()
        elif shape is not None:
            new.shape = ir.Shape([self.heads, 1, shape[-1]])
        self.bias.user.replace_input_with(self.bias.index, new)
        if most <= _SMALL:
            self._add_hidden()
        if old is not None:
            remove_unused(old)

    def _add_hidden(self) -> None:
        """Replace ``Where(visible, bias, hidden)`` by ``bias + Where(visible, 0, hidden)``.

        The Where is then no longer of the heads' size, and onnxruntime adds several times faster
        than it chooses. A hidden score stays the same number: the bias is below half of its last
        digit.
        """
        user, hidden = self.bias.user, self.bias.hidden
        if hidden is None or hidden > HIDES_ALL:
            return
        before, bias = Inserter(user), user.inputs[self.bias.index]
        assert bias is not None
        inputs = list(user.inputs)
        inputs[self.bias.index] = before.number(0.0, bias)
        result = before.op("Add", bias, before.op("Where", *inputs))
        result.shape = user.outputs[0].shape
        replace_output(user.outputs[0], result)
        remove_unused(user)


def constant_form(site: Folding) -> str | None:
    """A constant, where every size is fixed."""
    bias = site.bias
    if any(dim.terms for dim in bias.dims) or lengths(site.expression):
        return None
    shape = [dim.constant for dim in bias.dims]
    if prod(shape) * site.expression.type.numpy().itemsize > site.budget:
        return None
    axes = [np.arange(size).reshape([-1] + [1] * (3 - axis)) for axis, size in enumerate(shape)]
    array = compute(site.expression, dict(zip(AXES, axes, strict=True)))
    rank = len(bias.value.shape or shape)
    array = np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(shape[4 - rank :])
    most = float(np.abs(array).max())
    site.put(Inserter(bias.user).constant(array), most)
    return f"a constant, {site.heads} heads, {shape[2]} x {shape[3]}"


def row_form(site: Folding) -> str | None:
    """One row per head: the part of a sum that depends on the key, counted from the last key."""
    bias = site.bias
    parts = separate(site.expression, site.visible)
    if parts is None or not _spreads(bias) or not _is_line(parts[0]) or lengths(parts[0]):
        return None
    if bias.user.op_type == "Where" and (bias.hidden is None or bias.hidden > HIDES_ALL):
        return None
    if site.longest is None or not only_masks(bias.user.outputs[0], capped=False):
        return None
    ends = {**site.by_head, KEY: np.array(1 - site.longest)}
    largest = float(np.abs(compute(parts[0], ends)).max())
    if largest > site.roundable:
        return None
    before, graph = site.inserter(), site.graph.graph
    keys = Emitter(before, graph, {}).emit(site.sizes.keys)
    one = before.integer(1)
    place = before.op("Range", before.op("Sub", one, keys), one, one)  # 0 is the last key
    site.put(
        Emitter(before, graph, {KEY: place}, known=site.by_head).emit(parts[0]), largest, rows=False
    )
    return f"one row per head, {site.heads} heads, for up to {site.longest} keys"


def product_form(site: Folding) -> str | None:
    """The distance of visible keys, which heads share, times a slope for each head."""
    factors, bias = slope_times_distance(site.expression), site.bias
    if factors is None or site.rows_of_products:
        return None
    slope, distance, (low, high) = factors
    if bias.hidden is None or bias.hidden > HIDES_ALL or not only_masks(bias.user.outputs[0]):
        return None
    least, most = min(abs(low), abs(high)), max(abs(low), abs(high))
    largest = float(np.finfo(site.expression.type.numpy()).max)
    far = largest / max(1.0, most) if bias.hidden > -np.inf else np.inf
    if low * high <= 0 or least * far < -HIDES_ALL:
        raise Miss("a slope of 0, or slopes of both signs, would not hide a key")
    before, graph = Inserter(bias.user), site.graph.graph
    emitter = Emitter(before, graph, _positions(before, graph, site.sizes), known=site.by_head)
    inputs = list(bias.user.inputs)
    inputs[bias.index] = emitter.emit(distance)
    inputs[3 - bias.index] = before.number(-far if low > 0 else far, bias.value)
    result = before.op("Mul", before.op("Where", *inputs), emitter.emit(slope))
    result.shape = bias.user.outputs[0].shape
    replace_output(bias.user.outputs[0], result)
    remove_unused(bias.user)
    return f"the distance of visible keys times a slope, {site.heads} heads"


def toeplitz_form(site: Folding) -> str | None:
    """A Toeplitz matrix from a row of all distances, which a table gives or each call computes."""
    product = slope_times_distance(site.expression) is not None
    found = Toeplitz.of(site.expression)
    if found is None or (product and not site.rows_of_products):
        return None
    before, graph = site.inserter(), site.graph.graph
    width = site.expression.type.numpy().itemsize * site.heads
    if found.closed and found.reach is not None and width * (2 * found.reach + 1) <= site.budget:
        row = found.looked_up(site.heads, before, graph, site.sizes)
        became = f"a Toeplitz row out of a table of {2 * found.reach + 1} distances"
    else:
        row = found.computed(site.heads, before, graph, site.sizes)
        became = "a Toeplitz row computed once a call"
    matrix = spanned(row, before, graph, site.sizes)
    rank = len(site.bias.value.shape or AXES)
    if rank != 3:
        matrix = before.op("Unsqueeze" if rank == 4 else "Squeeze", matrix, before.integers(0))
    site.put(matrix, max(map(abs, bounds(found.row))))
    return f"{became}, {site.heads} heads"


def _positions(before: Inserter, graph: ir.Graph, sizes: Sizes) -> dict[str, ir.Value]:
    """Queries [T, 1] and keys [1, S]."""
    places = {}
    for name, size, axis in ((QUERY, sizes.queries, 1), (KEY, sizes.keys, 0)):
        count = Emitter(before, graph, {}).emit(size)
        line = before.op("Range", before.integer(0), count, before.integer(1))
        places[name] = before.op("Unsqueeze", line, before.integers(axis))
    return places


def _is_line(expression: Expression) -> bool:
    """Whether an expression changes equally from each key to the next, so its zero can move."""
    if KEY not in coordinates(expression):
        return True
    if isinstance(expression, Linear):
        return all(isinstance(t, Coordinate) or KEY not in coordinates(t) for t in expression.parts)
    if not isinstance(expression, Apply) or expression.op not in ("Cast", "Mul", "Div", "Neg"):
        return False
    if expression.op == "Div" and KEY in coordinates(expression.args[1]):
        return False
    return all(map(_is_line, expression.args))


def _spreads(bias: PositionBias) -> bool:
    """Whether the node that reads the bias has a row for each query without it."""
    reader = IndexReader()
    others = [v for i, v in enumerate(bias.user.inputs) if i != bias.index and v is not None]
    sizes = [reader.dims(v)[-2] for v in others if len(reader.dims(v)) > 1]
    return bias.dims[2] in sizes and bias.user.op_type in ("Where", "Add")
