"""Queries, keys and values as tensors of four axes, from any layout of a product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.attention.scores import number
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, constant, made_by, rank, same_dim
from omnigraph.passes.site_pass import Miss

Dim = int | ir.SymbolicDim
#: The end of a Slice that goes as far as any tensor does.
_WHOLE = 2**31 - 1


@dataclass(frozen=True)
class Heads:
    """A tensor [B, H, T, D]: a value of the Graph, or one that `make` inserts.

    Args:
        source: the value that it is made from.
        dims: its four dimensions.
        make: inserts the nodes that make it; None where it is the source.
    """

    source: ir.Value
    dims: tuple[Dim, Dim, Dim, Dim]
    make: Callable[[Inserter], ir.Value] | None = None

    @classmethod
    def whole(cls, value: ir.Value) -> Heads:
        """A value that has the four axes."""
        assert value.shape is not None
        b, h, t, d = value.shape
        return cls(value, (b, h, t, d))

    def made(self, new: Inserter) -> ir.Value:
        """The tensor itself."""
        return self.source if self.make is None else self.make(new)


def scaled_factor(value: ir.Value) -> tuple[ir.Value, float]:
    """A factor of the scores before it is multiplied by a number, and the number."""
    scale = 1.0
    while (node := made_by(value, "Mul", "Div", "Identity")) is not None:
        one, by = node.inputs[0], 1.0
        if node.op_type == "Mul":
            found = [(a, number(node.inputs[b])) for a, b in ((0, 1), (1, 0))]
            known = [(node.inputs[a], n) for a, n in found if n is not None]
            if not known:
                break
            one, by = known[0]
        elif node.op_type == "Div":
            divisor = number(node.inputs[1])
            if not divisor:
                break
            by = 1 / divisor
        if one is None or rank(one) != rank(value):
            break
        value, scale = one, scale * by
    return value, scale


def joined_heads(value: ir.Value | None) -> int | None:
    """H where a value [B*H, .., ..] was reshaped from [B, H, .., ..]."""
    source = _split_source(value)
    return axis_size(source, 1) if source is not None else None


def four_axes(value: ir.Value, heads: int | None) -> Heads:
    """A factor [B, H, M, N], [B*H, M, N] or [M, N] with four axes.

    Raises:
        Miss: its axes are not known, or it has others.
    """
    shape = value.shape
    if shape is None:
        raise Miss("the shape of a factor is not known", value.producer())
    dims = list(shape)
    if len(dims) == 4:
        return Heads.whole(value)
    if len(dims) == 2:
        return Heads(
            value,
            (1, 1, dims[0], dims[1]),
            lambda new: new.op("Unsqueeze", value, new.integers(0, 1)),
        )
    if len(dims) != 3:
        raise Miss(f"a factor has {len(dims)} axes", value.producer())
    if heads is None:
        return Heads(
            value,
            (dims[0], 1, dims[1], dims[2]),
            lambda new: new.op("Unsqueeze", value, new.integers(1)),
        )
    source = _split_source(value)
    if source is not None and axis_size(source, 1) == heads and source.shape is not None:
        return Heads(source, (source.shape[0], heads, dims[1], dims[2]), lambda _: source)
    return Heads(
        value,
        (_per_head(dims[0], heads), heads, dims[1], dims[2]),
        lambda new: split_axis(new, value, heads),
    )


def split_axis(new: Inserter, value: ir.Value, heads: int) -> ir.Value:
    """[B*H, M, N] as [B, H, M, N]."""
    tail = new.op("Shape", value, start=1, end=3)
    result = new.op("Reshape", value, new.op("Concat", new.integers(-1, heads), tail, axis=0))
    if value.shape is not None:
        dims = value.shape
        result.shape = ir.Shape([_per_head(dims[0], heads), heads, dims[1], dims[2]])
    return result


def _per_head(size: Dim, heads: int) -> Dim:
    if isinstance(size, int):
        return size // heads
    if size.value is None:
        return size
    named = size.value.removeprefix(f"{heads}*")
    return ir.SymbolicDim(named if named != size.value else f"{size.value}/{heads}")


def scaled_queries(value: ir.Value, heads: int | None) -> tuple[Heads, float]:
    """Queries [B, H, T, D] from the left factor of the scores, and their scale."""
    value, scale = scaled_factor(value)
    if rank(value) == 3 and heads is not None:
        source = _split_source(value)
        if source is not None and axis_size(source, 1) == heads:
            value, more = scaled_factor(source)
            scale *= more
    return four_axes(value, heads), scale


def transposed_keys(value: ir.Value, heads: int | None) -> tuple[Heads, float]:
    """Keys [B, H, S, D] from the right factor of the scores [.., D, S], and their scale."""
    value, scale = scaled_factor(value)
    if rank(value) == 3 and heads is not None:
        source = _split_source(value)
        if source is not None and axis_size(source, 1) == heads:
            value, more = scaled_factor(source)
            scale *= more
    node, axes = made_by(value, "Transpose"), rank(value) or 0
    perm = list(node.attributes.get_ints("perm", ())) if node is not None else []
    transposed = [*perm[:-2], perm[-1], perm[-2]] if perm else []
    if node is not None and transposed == list(range(axes)) and node.inputs[0] is not None:
        keys, more = scaled_factor(node.inputs[0])
        return four_axes(keys, heads), scale * more
    if node is not None and perm and axes == 4:
        source, more = scaled_factor(node.inputs[0])  # type: ignore[arg-type]
        shape = source.shape
        if shape is not None:
            d = [shape[axis] for axis in transposed]
            return Heads(
                source,
                (d[0], d[1], d[2], d[3]),
                lambda new: new.op("Transpose", source, perm=transposed),
            ), scale * more
    whole = four_axes(value, heads)
    b, h, size, length = whole.dims
    return Heads(
        whole.source,
        (b, h, length, size),
        lambda new: new.op("Transpose", whole.made(new), perm=[0, 1, 3, 2]),
    ), scale


def _split_source(value: ir.Value | None) -> ir.Value | None:
    """The value [B, H, M, N] that a Reshape joins to [B*H, M, N]."""
    node = made_by(value, "Reshape")
    source = node.inputs[0] if node is not None else None
    if value is None or source is None or rank(value) != 3 or rank(source) != 4:
        return None
    assert value.shape is not None and source.shape is not None
    same = all(same_dim(value.shape[axis], source.shape[axis]) for axis in (-1, -2))
    return source if same else None


def repeated_from(value: ir.Value) -> ir.Value | None:
    """The value [B, G, S, D] whose heads are repeated, each H/G times in a row, to [B, H, S, D]."""
    total = axis_size(value, 1)
    if rank(value) != 4 or total is None:
        return None
    node = made_by(value, "Reshape")
    if node is not None and rank(node.inputs[0]) == 5:
        return _from_five_axes(value, node.inputs[0])
    node = made_by(value, "Gather")
    if node is not None and node.attributes.get_int("axis", 0) in (1, -3):
        source, indices = node.inputs[0], constant(node.inputs[1])
        groups = axis_size(source, 1)
        if groups and indices is not None and total % groups == 0 and rank(source) == 4:
            in_a_row = np.repeat(np.arange(groups), total // groups)
            return source if np.array_equal(indices % groups, in_a_row) else None
        return None
    node = made_by(value, "Expand", "Tile", "Concat")
    source = _same_part(node) if node is not None else None
    return source if axis_size(source, 1) == 1 and _only_axis(source, value, 1) else None


def _from_five_axes(value: ir.Value, repeated: ir.Value | None) -> ir.Value | None:
    """The value [B, G, S, D] that is repeated as [B, G, R, S, D]."""
    node = made_by(_unsliced(repeated), "Expand", "Tile", "Concat")
    apart = _same_part(node) if node is not None else repeated  # repeated once is not at all
    apart = _unsliced(apart)
    if apart is None or repeated is None or axis_size(apart, 2) != 1:
        return None
    groups, each, total = axis_size(repeated, 1), axis_size(repeated, 2), axis_size(value, 1)
    if groups is None or each is None or groups * each != total:
        return None
    if not _only_axis(apart, repeated, 2) or not _same_axes(repeated, (3, 4), value, (2, 3)):
        return None
    split = made_by(apart, "Unsqueeze", "Reshape")
    source = _unsliced(split.inputs[0]) if split is not None else None
    if rank(source) != 4 or axis_size(source, 1) != groups:
        return None
    return source if _same_axes(source, (2, 3), apart, (3, 4)) else None


def _unsliced(value: ir.Value | None) -> ir.Value | None:
    """The value before copies, and before Slices that take all of it."""
    while (node := made_by(value, "Identity", "Slice")) is not None:
        if node.op_type == "Slice":
            starts, ends = constant(node.inputs[1]), constant(node.inputs[2])
            steps = constant(node.inputs[4]) if len(node.inputs) > 4 else np.array(1)
            if starts is None or ends is None or steps is None:
                break
            if starts.any() or (ends < _WHOLE).any() or (steps != 1).any():
                break
        value = node.inputs[0]
    return value


def _same_part(node: ir.Node) -> ir.Value | None:
    """The value that an Expand, a Tile, or a Concat of one value with itself repeats."""
    if node.op_type == "Concat" and any(v is not node.inputs[0] for v in node.inputs):
        return None
    return node.inputs[0]


def _only_axis(one: ir.Value | None, other: ir.Value, axis: int) -> bool:
    """Whether two values have the same dimensions but for one axis."""
    if one is None or one.shape is None or other.shape is None:
        return False
    if len(one.shape) != len(other.shape):
        return False
    pairs = enumerate(zip(one.shape, other.shape, strict=True))
    return all(same_dim(a, b) for index, (a, b) in pairs if index != axis)


def _same_axes(
    one: ir.Value | None, axes: tuple[int, ...], other: ir.Value, others: tuple[int, ...]
) -> bool:
    if one is None or one.shape is None or other.shape is None:
        return False
    return all(same_dim(one.shape[a], other.shape[b]) for a, b in zip(axes, others, strict=True))
