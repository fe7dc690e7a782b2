"""Fuses the ops of a rotary embedding into RotaryEmbedding."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.position.rotary_caches import Half, half_of, repeat_for_batch
from omnigraph.passes.analysis.position.rotation import Rotation, match_rotation, may_end_rotation
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    constant,
    input_at,
    made_by,
    nodes_of,
    rank,
    remove_unused,
    replace_output,
    same_dim,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass

_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16")
_SWAP = [0, 2, 1, 3]


@dataclass(frozen=True)
class FuseRotary(SitePass):
    """Fuse the rotation of queries or keys by their positions into RotaryEmbedding.

    Before, with x [B, H, T, D], its first R features split into halves a and b or into
    neighbours, and cosines and sines of R or R/2 features (Su et al. 2021, section 3.4.2)::

        y = x * cos + Concat(-b, a) * sin
        y = Concat(a * cos - b * sin, b * cos + a * sin)

    After, with cos and sin [B, T, R/2]::

        y = RotaryEmbedding[interleaved, rotary_embedding_dim](x, cos, sin)

    Features that are not rotated, as in ``Concat(rotated, rest)``, are taken in. An x [B, T, H, D]
    is transposed first; the result is not transposed back where the next node transposes it again.

    Needs: shapes of x, the cosines and the sines. Cosines and sines of R features must have equal
    numbers for the two of a pair, as a Concat or Expand of one value has, or a constant table.
    Leaves alone: x of three axes, angles that differ by head.
    """

    makes: ClassVar[tuple[str, ...]] = ("RotaryEmbedding",)

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every sum with a rotated x, and every Concat or Reshape of two rotated halves."""
        return (n for n in nodes_of(graph, "Add", "Concat", "Reshape") if may_end_rotation(n))

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse the rotation that ends at a node."""
        rotation = match_rotation(node)
        x, end = rotation.x, rotation.end
        if x.dtype is None or x.dtype.name not in _TYPES:
            raise Miss("x is of a type that RotaryEmbedding does not take")
        head_axis = _head_axis(rotation)
        tables = (rotation.cosines, rotation.sines)
        caches = [_Cache.of(rotation, table, head_axis) for table in tables]
        before = Inserter(end)
        if head_axis == 2:
            x = before.op("Transpose", x, perm=_SWAP)
        y = before.op(
            "RotaryEmbedding",
            x,
            *(cache.make(graph, before, x) for cache in caches),
            interleaved=int(rotation.interleaved),
            rotary_embedding_dim=0 if rotation.size == axis_size(x, -1) else rotation.size,
        )
        y.shape = x.shape
        _put(before, end, y, head_axis)
        pairs = "neighbours" if rotation.interleaved else "halves"
        part = "" if rotation.size == axis_size(x, -1) else f" of {axis_size(x, -1)}"
        return f"RotaryEmbedding of {pairs}, {rotation.size}{part} features"


def _head_axis(rotation: Rotation) -> int:
    """The axis of heads of x; cosines and sines are the same along it.

    Raises:
        Miss: x has other axes than batch, heads, positions and features, or the angles are not one
            for each position.
    """
    shape = rotation.x.shape
    if shape is None or len(shape) != 4 or axis_size(rotation.x, 3) is None:
        raise Miss("x is not known to have axes of batch, heads, positions and features")
    features = rotation.size if rotation.twice else rotation.size // 2
    for axis in (1, 2):
        one_head = [shape[0], shape[1], shape[2], features]
        one_head[axis] = 1
        if all(_fits(table, one_head) for table in (rotation.cosines, rotation.sines)):
            return axis
    found = [str(table.shape) for table in (rotation.cosines, rotation.sines)]
    raise Miss(f"cosines and sines are not one for each position: {' and '.join(found)}")


def _fits(table: ir.Value, sizes: list[int | ir.SymbolicDim]) -> bool:
    if table.shape is None or not 2 <= len(table.shape) <= 4:
        return False
    dims = [1] * (4 - len(table.shape)) + list(table.shape)
    return (dims[0] == 1 or same_dim(dims[0], sizes[0])) and all(map(same_dim, dims[1:], sizes[1:]))


@dataclass(frozen=True)
class _Cache:
    """How to make cosines or sines [1 or B, T, R/2], from a table that is broadcast with x."""

    half: Half
    heads: int | None  # the axis of heads, where the table has one

    @classmethod
    def of(cls, rotation: Rotation, table: ir.Value, head_axis: int) -> _Cache:
        """The cache of the cosines or the sines of a rotation.

        Raises:
            Miss: they have two numbers for each pair, which are not known to be equal.
        """
        dims = rank(table) or 0
        heads: int | None = head_axis - (4 - dims) if dims == 4 or head_axis == 2 else None
        lifted = made_by(table, "Unsqueeze")
        axes = constant(input_at(lifted, 1)) if lifted is not None else None
        if lifted is not None and axes is not None and heads is not None:
            of_heads = axes.reshape(-1).tolist() in ([heads], [heads - dims])
            table, heads = (lifted.inputs[0] or table, None) if of_heads else (table, heads)
        if not rotation.twice:
            return cls(lambda before: table, heads)
        half = half_of(table, rotation.interleaved)
        if half is None:
            raise Miss("the two of a pair are not known to have the same cosine and sine")
        return cls(half, heads)

    def make(self, graph: Graph, before: Inserter, x: ir.Value) -> ir.Value:
        """Make the cosines or sines for the batch of x [B, H, T, D]."""
        value = self.half(before)
        if self.heads is not None:
            value = before.op("Squeeze", value, before.integers(self.heads))
        if rank(value) == 2:
            value = before.op("Unsqueeze", value, before.integers(0))
        if axis_size(value, 0) == 1 and axis_size(x, 0) != 1:
            value = repeat_for_batch(graph, before, value, x)
        return value


def _put(before: Inserter, end: ir.Node, y: ir.Value, head_axis: int) -> None:
    """Replace the output of the end by y, transposed back unless all readers transpose it again."""
    old = end.outputs[0]
    users = [user for user, _ in old.uses()]
    if head_axis == 2:
        swaps = [u for u in users if standard(u, "Transpose")]
        swaps = [u for u in swaps if list(u.attributes.get_ints("perm", [])) == _SWAP]
        if len(swaps) == len(users) and users and not old.is_graph_output():
            for swap in swaps:
                replace_output(swap.outputs[0], y)
                remove_unused(swap)
            return
        y = before.op("Transpose", y, perm=_SWAP)
    replace_output(old, y)
    remove_unused(end)
