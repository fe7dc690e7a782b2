"""Reads the sizes of a value's axes, from the names of dimensions or from the node."""

from __future__ import annotations

import abc

import onnx_ir as ir

from omnigraph.passes.analysis.index.bounds import bounds
from omnigraph.passes.analysis.index.evaluation import ELEMENTWISE
from omnigraph.passes.analysis.index.expression import Expression, Linear, atom, total
from omnigraph.passes.analysis.index.shapes import Index, broadcast, dimension, product
from omnigraph.passes.matching import input_at

#: The end of a Slice from here on means the end of the axis.
FARTHEST = 1 << 40


class NotClosed(Exception):
    """A value whose elements cannot be read: a shape is unknown, or the expression is too large.

    Args:
        reason: why, for a person.
        at: the node at which reading stopped.
    """

    def __init__(self, reason: str, at: ir.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.at = reason, at


class DimensionReader(abc.ABC):
    """Reads the sizes of values, each once."""

    def __init__(self) -> None:
        self._dims: dict[ir.Value, tuple[Linear | None, ...]] = {}
        self._names: set[Expression] | None = None

    @abc.abstractmethod
    def element(self, value: ir.Value | None, index: Index) -> Expression:
        """The element of a value at an index."""

    def scalar(self, value: ir.Value | None) -> Expression:
        """The one element of a scalar, or of a tensor of one element."""
        return self.element(value, (Linear(0),) * len(self.dims(value)))

    def dims(self, value: ir.Value | None) -> tuple[Linear | None, ...]:
        """The size of each axis; None where it is not known.

        Raises:
            NotClosed: the rank is not known.
        """
        assert value is not None
        if value not in self._dims:
            found = None if value.shape is None else [dimension(dim) for dim in value.shape]
            if found is None or not all(self._is_named(value, dim) for dim in found):
                found = self._dims_by_node(value, found)
            if found is None:
                raise NotClosed(f"the rank of {value.name!r} is not known", value.producer())
            self._dims[value] = tuple(found)
        return self._dims[value]

    def _is_named(self, value: ir.Value, dim: Linear | None) -> bool:
        """Whether a size consists of sizes of the Graph's inputs; inference invents other names."""
        graph = value.graph
        if self._names is None and graph is not None:
            shapes = [given.shape for given in graph.inputs if given.shape is not None]
            sizes = [dimension(size) for shape in shapes for size in shape]
            self._names = {part for size in sizes if size is not None for part in size.parts}
        return dim is not None and self._names is not None and self._names.issuperset(dim.parts)

    def _item(
        self, value: ir.Value | None, position: int, default: int | None = None
    ) -> Linear | None:
        """An element of a list of integers, such as the starts of a Slice."""
        if value is None:
            return None if default is None else Linear(default)
        return atom(self.element(value, (Linear(position),)))

    def _axes(self, node: ir.Node, rank: int) -> set[int] | None:
        given = input_at(node, 1)
        tensor = ir.convenience.get_const_tensor(given) if given is not None else None
        return None if tensor is None else {int(a) % rank for a in tensor.numpy().reshape(-1)}

    def _dims_by_node(
        self, value: ir.Value, known: list[Linear | None] | None
    ) -> list[Linear | None] | None:
        """Sizes from the node, and the declared ones where the node does not give them."""
        node = value.producer()
        if node is None or node.domain != "":
            return known
        found: list[Linear | None] | None = None
        if node.op_type in ELEMENTWISE:
            found = broadcast([self.dims(given) for given in node.inputs if given is not None])
        elif node.op_type == "Expand":
            found = self._expanded(node)
        elif node.op_type == "Unsqueeze":
            found = self._unsqueezed(node)
        elif node.op_type == "Concat":
            found = self._concat_dims(node)
        elif node.op_type == "GatherND" and not node.attributes.get_int("batch_dims", 0):
            *rest, depth = self.dims(node.inputs[1])
            if depth is not None and not depth.terms:
                found = [*rest, *self.dims(node.inputs[0])[depth.constant :]]
        elif node.op_type == "Gather":
            inner = self.dims(node.inputs[0])
            axis = (node.attributes.get_int("axis", 0) or 0) % len(inner)
            found = [*inner[:axis], *self.dims(node.inputs[1]), *inner[axis + 1 :]]
        elif node.op_type == "Range":
            found = [self._count(node)]
        elif node.op_type == "Transpose":
            inner = self.dims(node.inputs[0])
            order = node.attributes.get_ints("perm") or range(len(inner) - 1, -1, -1)
            found = [inner[axis] for axis in order]
        elif node.op_type in ("Trilu", "CastLike", "CumSum"):
            found = list(self.dims(node.inputs[0]))
        elif node.op_type == "ConstantOfShape":
            found = self._listed(node.inputs[0])
        elif node.op_type == "Slice":
            found = self._slice_dims(node)
        elif node.op_type == "Reshape" and known is not None and len(known) == 1:
            found = [product(self.dims(node.inputs[0]))]
        if found is None or known is None:
            return found if known is None else known
        return [
            one if other is None or (one is not None and not one.terms) else other
            for one, other in zip(known, found, strict=True)
        ]

    def _count(self, node: ir.Node) -> Linear | None:
        """The length of a Range of integers."""
        start, limit, step = (self.scalar(given) for given in node.inputs)
        if not (isinstance(start, Linear) and isinstance(limit, Linear) and step == Linear(1)):
            return None
        return limit - start

    def _expanded(self, node: ir.Node) -> list[Linear | None] | None:
        shape = self._listed(node.inputs[1])
        return None if shape is None else broadcast([tuple(shape), self.dims(node.inputs[0])])

    def _listed(self, shape: ir.Value | None) -> list[Linear | None] | None:
        """The numbers in a value that is a shape."""
        (rank,) = self.dims(shape)
        if rank is None or rank.terms:
            return None
        return [self._item(shape, axis) for axis in range(rank.constant)]

    def _slice_dims(self, node: ir.Node) -> list[Linear | None] | None:
        """Sizes after a Slice with steps of 1 that counts from the front."""
        found = list(self.dims(node.inputs[0]))
        listed = [self._listed(given) for given in node.inputs[1:3]]
        if None in listed:
            return None
        for position, (start, end) in enumerate(zip(*listed, strict=True)):  # type: ignore[arg-type]
            axis = self._item(input_at(node, 3), position, default=position)
            step = self._item(input_at(node, 4), position, default=1)
            if axis is None or axis.terms or start is None or end is None or step != Linear(1):
                return None
            which = axis.constant % len(found)
            if not end.terms:
                end = found[which] if end.constant >= FARTHEST else None
            negative = bounds(start)[0] < 0 or end is None
            found[which] = None if negative or end is None else end - start
        return found

    def _unsqueezed(self, node: ir.Node) -> list[Linear | None] | None:
        dims = self.dims(node.inputs[0])
        given = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] else None
        if given is None:
            return None
        axes, rest = self._axes(node, len(dims) + given.size), iter(dims)
        assert axes is not None
        return [Linear(1) if a in axes else next(rest) for a in range(len(dims) + len(axes))]

    def _concat_dims(self, node: ir.Node) -> list[Linear | None]:
        parts = [self.dims(given) for given in node.inputs]
        found = [
            next((d for d in dims if d is not None), None) for dims in zip(*parts, strict=True)
        ]
        axis = (node.attributes.get_int("axis", 0) or 0) % len(found)
        joined = [dims[axis] for dims in parts]
        sizes = [size for size in joined if size is not None]
        found[axis] = total([(s, 1) for s in sizes]) if len(sizes) == len(joined) else None
        return found
