"""Reads an element of a value as an expression of its index, back through the nodes.

Each op has a rule for one element: an element of ``Transpose(x)`` is the element of ``x`` at the
permuted index, an element of ``Range(a, b, s)`` at ``c`` is ``a + s*c``. A value without a rule is
a leaf: an `Element` of it at the index.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from omnigraph.passes.analysis.index.bounds import bounds
from omnigraph.passes.analysis.index.dimensions import FARTHEST, DimensionReader, NotClosed
from omnigraph.passes.analysis.index.evaluation import ELEMENTWISE
from omnigraph.passes.analysis.index.expression import (
    FALSE,
    Expression,
    Linear,
    Number,
    atom,
    coordinate,
    coordinates,
)
from omnigraph.passes.analysis.index.shapes import Index, product, regrouped
from omnigraph.passes.analysis.index.simplification import (
    apply,
    choice,
    constant,
    element,
    non_negative,
)
from omnigraph.passes.analysis.index.tables import closed_form
from omnigraph.passes.matching import input_at

#: The most elements that are read for one expression.
_MOST_NODES = 2000


def read(value: ir.Value, names: Sequence[str]) -> Expression:
    """An element of a value as an expression.

    Args:
        names: of the coordinates, aligned at the last axis.

    Raises:
        NotClosed: the rank is not known, or larger than the number of names; or see the class.
    """
    reader = IndexReader()
    dims = reader.dims(value)
    if len(dims) > len(names):
        raise NotClosed(f"it has {len(dims)} axes", value.producer())
    named = zip(list(names)[len(names) - len(dims) :], dims, strict=True)
    return reader.element(value, tuple(coordinate(n, _known(dim)) for n, dim in named))


class IndexReader(DimensionReader):
    """Reads elements and sizes of values, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[tuple[ir.Value, Index], Expression] = {}

    def element(self, value: ir.Value | None, index: Index) -> Expression:
        """The element of a value at an index.

        Raises:
            NotClosed: see the class.
        """
        assert value is not None
        key = (value, index)
        if key not in self._read:
            if len(self._read) > _MOST_NODES:
                raise NotClosed("the expression is too large", value.producer())
            self._read[key] = self._element(value, index)
        return self._read[key]

    # -- elements ----------------------------------------------------------------------------------

    def _element(self, value: ir.Value, index: Index) -> Expression:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return closed_form(value, index)
        node = value.producer()
        if node is None or node.domain != "" or value is not node.outputs[0]:
            return element(value, index)
        if node.op_type in ELEMENTWISE:
            return self._elementwise(node, value, index)
        rule = getattr(self, f"_of_{node.op_type.lower()}", None)
        found = rule(node, index) if rule is not None else None
        return element(value, index) if found is None else found

    def _argument(
        self, value: ir.Value | None, index: Index, out: Sequence[Linear | None]
    ) -> Index:
        """The index into an input that broadcasts to an index of the result."""
        dims = self.dims(value)
        skipped = len(index) - len(dims)
        found = []
        for at, dim, whole in zip(index[skipped:], dims, out[skipped:], strict=True):
            if dim == Linear(1):
                at = Linear(0)
            elif dim is not None and dim != whole and dim.terms:
                at_node = value.producer() if value is not None else None
                raise NotClosed(f"a size {dim} meets a size {whole}", at_node)
            found.append(at)
        return tuple(found)

    def _elementwise(self, node: ir.Node, value: ir.Value, index: Index) -> Expression:
        out = self.dims(value)
        assert value.dtype is not None
        args: list[Expression | None] = []
        for given in node.inputs:
            inner = () if given is None else self._argument(given, index, out)
            args.append(None if given is None else self.element(given, inner))
        if node.op_type == "Clip":
            return self._clipped(args, value.dtype)
        if node.op_type == "Mod" and bool(node.attributes.get_int("fmod", 0)):
            return element(value, index)
        return apply(node.op_type, [arg for arg in args if arg is not None], value.dtype)

    def _clipped(self, args: list[Expression | None], dtype: ir.DataType) -> Expression:
        (result, low, high) = (*args, None, None)[:3]
        assert result is not None
        for op, bound in (("Max", low), ("Min", high)):
            result = result if bound is None else apply(op, [result, bound], dtype)
        return result

    def _of_castlike(self, node: ir.Node, index: Index) -> Expression:
        like = node.inputs[1]
        assert like is not None and like.dtype is not None
        return apply("Cast", [self.element(node.inputs[0], index)], like.dtype)

    def _of_dropout(self, node: ir.Node, index: Index) -> Expression | None:
        return self.element(node.inputs[0], index) if len(node.inputs) < 3 else None

    def _of_transpose(self, node: ir.Node, index: Index) -> Expression:
        order = node.attributes.get_ints("perm") or range(len(index) - 1, -1, -1)
        found = dict(zip(order, index, strict=True))
        return self.element(node.inputs[0], tuple(found[axis] for axis in range(len(index))))

    def _of_unsqueeze(self, node: ir.Node, index: Index) -> Expression | None:
        axes = self._axes(node, len(index))
        if axes is None:
            return None
        kept = tuple(at for axis, at in enumerate(index) if axis not in axes)
        return self.element(node.inputs[0], kept)

    def _of_squeeze(self, node: ir.Node, index: Index) -> Expression | None:
        dims = self.dims(node.inputs[0])
        axes = self._axes(node, len(dims))
        if axes is None:
            axes = {axis for axis, dim in enumerate(dims) if dim == Linear(1)}
        rest = iter(index)
        whole = tuple(Linear(0) if axis in axes else next(rest) for axis in range(len(dims)))
        return self.element(node.inputs[0], whole)

    def _of_expand(self, node: ir.Node, index: Index) -> Expression:
        out = self.dims(node.outputs[0])
        return self.element(node.inputs[0], self._argument(node.inputs[0], index, out))

    def _of_tile(self, node: ir.Node, index: Index) -> Expression | None:
        found = []
        for axis, (dim, at) in enumerate(zip(self.dims(node.inputs[0]), index, strict=True)):
            if self._item(node.inputs[1], axis) == Linear(1):
                found.append(at)
            elif dim is not None and not dim.terms:
                found.append(atom(apply("Mod", [at, dim], ir.DataType.INT64)))
            else:
                return None
        return self.element(node.inputs[0], tuple(found))

    def _of_reshape(self, node: ir.Node, index: Index) -> Expression | None:
        inner = regrouped(self.dims(node.inputs[0]), self.dims(node.outputs[0]), index)
        return None if inner is None else self.element(node.inputs[0], inner)

    def _of_slice(self, node: ir.Node, index: Index) -> Expression | None:
        dims, found = self.dims(node.inputs[0]), list(index)
        count = self.dims(node.inputs[1])[0]
        if count is None or count.terms:
            return None
        for position in range(count.constant):
            axis = self._item(input_at(node, 3), position, default=position)
            step = self._item(input_at(node, 4), position, default=1)
            start = self._item(node.inputs[1], position)
            if axis is None or step is None or start is None or axis.terms or step.terms:
                return None
            which, size = axis.constant % len(dims), dims[axis.constant % len(dims)]
            if step.constant < 0 and not start.terms and start.constant >= FARTHEST:
                start = Linear(-1)
            if not start.terms and start.constant < 0 and size is not None:
                start = size + start.constant
            elif bounds(start)[0] < 0 or step.constant < 0:
                return None
            found[which] = start + found[which] * step.constant
        return self.element(node.inputs[0], tuple(found))

    def _of_concat(self, node: ir.Node, index: Index) -> Expression | None:
        axis = (node.attributes.get_int("axis", 0) or 0) % len(index)
        pieces: list[tuple[Linear, ir.Value]] = []
        start = Linear(0)
        for piece in node.inputs:
            assert piece is not None
            pieces.append((start, piece))
            size = self.dims(piece)[axis]
            if size is None:
                return None
            start = start + size
        return self._concatenated(pieces, index, axis)

    def _concatenated(
        self, pieces: list[tuple[Linear, ir.Value]], index: Index, axis: int
    ) -> Expression:
        """The element of the last piece that begins at or before the index."""
        result: Expression | None = None
        for start, piece in pieces:
            begun = non_negative(index[axis] - start)
            if begun == FALSE:
                break
            local = (*index[:axis], index[axis] - start, *index[axis + 1 :])
            found = self.element(piece, local)
            result = found if result is None else choice(begun, found, result)
        assert result is not None
        return result

    def _of_gather(self, node: ir.Node, index: Index) -> Expression | None:
        dims = self.dims(node.inputs[0])
        axis = (node.attributes.get_int("axis", 0) or 0) % len(dims)
        rank = len(self.dims(node.inputs[1]))
        picked = atom(self.element(node.inputs[1], index[axis : axis + rank]))
        if not picked.terms and picked.constant < 0 and (size := dims[axis]) is not None:
            picked = size + picked.constant
        inner = (*index[:axis], picked, *index[axis + rank :])
        table = node.inputs[0]
        assert table is not None
        if bounds(picked)[0] < 0 and ir.convenience.get_const_tensor(table) is None:
            if table.producer() is not None:
                return None  # it may count from the end
            return element(table, inner)
        return self.element(table, inner)

    def _of_gathernd(self, node: ir.Node, index: Index) -> Expression | None:
        if node.attributes.get_int("batch_dims", 0):
            return None
        depth = self.dims(node.inputs[1])[-1]
        if depth is None or depth.terms:
            return None
        rank = len(self.dims(node.inputs[1])) - 1
        picked = [
            atom(self.element(node.inputs[1], (*index[:rank], Linear(k))))
            for k in range(depth.constant)
        ]
        if any(bounds(one)[0] < 0 for one in picked):
            return None
        return self.element(node.inputs[0], (*picked, *index[rank:]))

    def _of_trilu(self, node: ir.Node, index: Index) -> Expression | None:
        shift = input_at(node, 1)
        k = Linear(0) if shift is None else atom(self.scalar(shift))
        beyond = index[-1] - index[-2] - k
        upper = node.attributes.get_int("upper", 1)
        dtype = node.outputs[0].dtype
        assert dtype is not None
        kept = non_negative(beyond if upper else -beyond)
        return choice(kept, self.element(node.inputs[0], index), constant(0, dtype))

    def _of_eyelike(self, node: ir.Node, index: Index) -> Expression:
        dtype = node.outputs[0].dtype
        assert dtype is not None
        same = index[1] - index[0] - (node.attributes.get_int("k", 0) or 0)
        on = apply("Equal", [same, Linear(0)], ir.DataType.BOOL)
        return choice(on, constant(1, dtype), constant(0, dtype))

    def _of_range(self, node: ir.Node, index: Index) -> Expression | None:
        start, _, step = (self.scalar(given) for given in node.inputs)
        dtype = node.outputs[0].dtype
        assert dtype is not None
        if dtype.is_integer():
            first, by = atom(start), atom(step)
            return first + index[0] * by.constant if not by.terms else None
        if not (isinstance(start, Number) and isinstance(step, Number)):
            return None
        if start.value % 1 or step.value % 1:
            return None
        count = index[0] * int(step.value) + int(start.value)
        return apply("Cast", [count], dtype)

    def _of_shape(self, node: ir.Node, index: Index) -> Expression | None:
        dims = self.dims(node.inputs[0])
        if index[0].terms:
            return None
        start = node.attributes.get_int("start", 0) or 0
        first = max(0, start + len(dims) if start < 0 else start)
        return dims[first + index[0].constant]

    def _of_size(self, node: ir.Node, index: Index) -> Expression | None:
        return product(self.dims(node.inputs[0]))

    def _of_constantofshape(self, node: ir.Node, index: Index) -> Expression:
        dtype = node.outputs[0].dtype
        assert dtype is not None
        filled = node.attributes.get("value")
        return constant(0 if filled is None else filled.as_tensor().numpy().item(), dtype)

    def _of_cumsum(self, node: ir.Node, index: Index) -> Expression | None:
        axis = atom(self.scalar(node.inputs[1]))
        if axis.terms or bool(node.attributes.get_int("reverse", 0)):
            return None
        which = axis.constant % len(index)
        summed = self.element(node.inputs[0], index)
        one, dtype = summed, node.outputs[0].dtype
        assert dtype is not None
        if coordinates(one) or not isinstance(one, Linear) or one.terms:
            return None
        count = index[which] + (0 if node.attributes.get_int("exclusive", 0) else 1)
        return count * one.constant


def _known(dim: Linear | None) -> int | None:
    return dim.constant if dim is not None and not dim.terms else None
