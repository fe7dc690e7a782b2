"""Attention whose mask shows each query few keys becomes Attention of blocks over those keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.attention_mask import BATCH, HEAD, KEY, QUERY, MaskMeaning, meaning
from omnigraph.passes.base import Graph
from omnigraph.passes.block_layout import BlockPattern, Blocks, Layout, Window, pattern_of
from omnigraph.passes.block_mask import block_mask, check
from omnigraph.passes.index_expression import TRUE, Linear, coordinate, coordinates
from omnigraph.passes.index_reading import NotClosed
from omnigraph.passes.index_shapes import dimension
from omnigraph.passes.index_simplification import every, substitute
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.mask_reach import reach
from omnigraph.passes.matching import (
    axis_size,
    input_at,
    nodes_of,
    rank,
    remove_unused,
    replace_output,
)
from omnigraph.passes.site_pass import Miss, SitePass

_MASK, _SCORES_OUTPUT = 3, 3
#: On an Attention that is of blocks already.
_BLOCKS_KEY = "omnigraph.blocks"


@dataclass(frozen=True)
class LowerSparseAttention(SitePass):
    """Compute a sliding window or a block-sparse pattern block by block, at a cost linear in T.

    Before, of q [B, H, T, D], with a mask that hides all keys but those near each query::

        y = Attention(q, k, v, mask [B or 1, H or 1, T, S])

    After, with T in N blocks of b queries, each of which sees K keys::

        qb = Reshape(Gather[axis=2](q, rows [N, b]), [B*H, N, b, D])
        kb = Reshape(Gather[axis=2](k, columns [N, K]), [B*H, N, K, D])       vb alike
        y  = Slice(Reshape(Attention(qb, kb, vb, mask at the blocks), [B, H, N*b, D]), T)

    The mask is read as an expression of positions (`attention_mask`). What it can show is proved
    from that (`mask_reach`), and its elements are made again at the blocks alone: bias, padding
    and what else there is in it come along, and the T x S mask goes. First blocks of queries that
    see every key (OmniNet's global blocks) are an Attention of their own.

    Needs: shapes with known heads and named lengths; a mask made from positions. Exact: a hidden
    key's share is 0 either way. Leaves alone: masks that may show every key; those whose rows may
    be hidden entirely by a finite number, as such a row is the mean over all keys; Attention of
    three axes, with a past of its own, or with an output of the scores.

    Args:
        block: the most queries in a block of a window.
        shortest: a length that is known to be less is left to the dense form.
    """

    block: int = 128
    shortest: int = 512

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Attention with a mask that is not of blocks already."""
        for node in nodes_of(graph, "Attention"):
            if input_at(node, _MASK) is not None and _BLOCKS_KEY not in node.metadata_props:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Put blocks in the place of one Attention."""
        site = _Site.of(node)
        pattern = pattern_of(reach(every(site.mask.visible), site.past))
        check(site.mask.expression, graph.graph)
        if site.mask.hidden not in (None, float("-inf")) and not site.every_row_sees():
            raise Miss("a row may be hidden entirely by a finite number: the mean of all values")
        if isinstance(pattern, BlockPattern) and site.past != Linear(0):
            raise Miss("queries and keys differ in number, and so do the blocks they are in")
        for axis, value in ((2, site.query), (2, site.key)):
            size = axis_size(value, axis)
            if size is not None and size < self.shortest:
                raise Miss(f"a length of {size} is less than {self.shortest}: the dense form")
        _Lowering(graph.graph, site, self.block).run(pattern)
        if isinstance(pattern, Window):
            return f"Attention of blocks: keys from {pattern.low} to {pattern.high} of the query"
        kinds = f"{pattern.high - pattern.low + 1} near, {pattern.columns} first"
        return f"Attention of blocks of {pattern.unit}: {kinds}, {len(pattern.drawn)} drawn"


@dataclass(frozen=True)
class _Site:
    """An Attention that may be lowered."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: MaskMeaning
    past: Linear

    @classmethod
    def of(cls, node: ir.Node) -> _Site:
        query, key, value = (v for v in node.inputs[:3] if v is not None)
        if "q_num_heads" in node.attributes or any(rank(v) != 4 for v in (query, key, value)):
            raise Miss("its heads are not axes of their own")
        if any(v is not None for v in node.inputs[_MASK + 1 :]):
            raise Miss("it keeps its own past, or counts its keys")
        if len(node.outputs) > _SCORES_OUTPUT and node.outputs[_SCORES_OUTPUT].uses():
            raise Miss("its scores are an output")
        if node.attributes.get_int("is_causal", 0):
            raise Miss("a causal flag stands beside the mask")
        if any(axis_size(v, axis) is None for v in (query, key, value) for axis in (1, 3)):
            raise Miss("the number or the size of its heads is not known")
        assert query.shape is not None and key.shape is not None
        queries, keys = dimension(query.shape[2]), dimension(key.shape[2])
        if queries is None or keys is None:
            raise Miss("a length has no name")
        mask = input_at(node, _MASK)
        assert mask is not None
        try:
            found = meaning(mask)
        except NotClosed as stopped:
            raise Miss(f"the mask is not read: {stopped.reason}", at=stopped.at) from stopped
        return cls(node, query, key, value, found, keys - queries)

    def every_row_sees(self) -> bool:
        """Whether each query is sure to see the key at its own position."""
        own = {KEY: coordinate(QUERY) + self.past}
        return substitute(every(self.mask.visible), own) == TRUE


class _Lowering:
    """One Attention being put into blocks, the new nodes before it."""

    def __init__(self, graph: ir.Graph, site: _Site, block: int) -> None:
        self.graph, self.site, self.block = graph, site, block
        self.insert = Inserter(site.node)
        self.layout = Layout(self.insert, site.query, site.key)

    def run(self, pattern: Window | BlockPattern) -> None:
        site, op = self.site, self.insert.op
        heads, size = axis_size(site.query, 1), axis_size(site.value, 3)
        assert heads is not None and size is not None
        if isinstance(pattern, Window):
            blocks = self.layout.window(pattern, self.block, site.past)
        else:
            blocks = self.layout.blocks(pattern, self.graph)
        result = self.attention(
            self.read(site.query, blocks.rows, blocks.count, blocks.size),
            *(
                self.read(self.per_query(v), blocks.columns, blocks.count, blocks.width)
                for v in (site.key, site.value)
            ),
            self.mask(blocks),
        )
        rows = op("Mul", blocks.count, blocks.size)
        first, last = self.insert.integers(-1, heads), self.insert.integers(size)
        whole = op("Concat", first, rows, last, axis=0)
        result = op("Reshape", result, whole)  # [B, H, N*b, D]
        ends = self.insert.integers(0), op("Reshape", self.layout.queries, self.insert.integers(1))
        if isinstance(pattern, BlockPattern) and pattern.rows:
            first = pattern.rows * pattern.unit
            rest = op(
                "Slice",
                result,
                self.insert.integers(first),
                self.insert.integers(2**62),
                self.insert.integers(2),
            )
            result = op("Concat", self.top(first), rest, axis=2)
        result = op("Slice", result, *ends, self.insert.integers(2))
        replace_output(site.node.outputs[0], result)
        remove_unused(site.node)

    def attention(self, *inputs: ir.Value) -> ir.Value:
        kept = {n: a.value for n, a in self.site.node.attributes.items() if n != "is_causal"}
        new = self.insert.node("Attention", *inputs, **kept)
        new.metadata_props[_BLOCKS_KEY] = "1"
        return new.outputs[0]

    def top(self, rows: int) -> ir.Value:
        """The first queries, which see every key: [B, H, rows, D]."""
        index, places, positions = self.layout.top(rows)
        mask = block_mask(
            self.insert, self.graph, self.site.mask.expression, places, positions, None
        )
        missing = 4 - (rank(mask) or 4)
        if missing:
            mask = self.insert.op("Unsqueeze", mask, self.insert.integers(*range(missing)))
        query = self.insert.op("Gather", self.site.query, index, axis=2)
        return self.attention(query, self.site.key, self.site.value, mask)

    def read(self, value: ir.Value, index: ir.Value, count: ir.Value, size: ir.Value) -> ir.Value:
        """[B, H, T, D] at an index [N, b] -> [B*H, N, b, D]."""
        read = self.insert.op("Gather", value, index, axis=2)
        last = self.insert.integers(axis_size(value, 3) or -1)
        shape = self.insert.op("Concat", self.insert.integers(-1), count, size, last, axis=0)
        return self.insert.op("Reshape", read, shape)

    def per_query(self, value: ir.Value) -> ir.Value:
        """Keys or values with as many heads as the queries have."""
        heads, own = axis_size(self.site.query, 1), axis_size(value, 1)
        assert heads is not None and own is not None
        if heads == own:
            return value
        apart = self.insert.op("Unsqueeze", value, self.insert.integers(2))  # [B, G, 1, S, D]
        times = self.insert.integers(1, 1, heads // own, 1, 1)
        repeated = self.insert.op("Expand", apart, times)
        shape = self.insert.integers(0, heads, -1, axis_size(value, 3) or -1)
        return self.insert.op("Reshape", repeated, shape)

    def mask(self, blocks: Blocks) -> ir.Value:
        """[B*H, N, b, K], or [1, N, b, K] where batch and heads share it."""
        site, op = self.site, self.insert.op
        expression = site.mask.expression
        mask = block_mask(
            self.insert, self.graph, expression, blocks.places, blocks.positions, blocks.valid
        )
        shared = not coordinates(expression) & {BATCH, HEAD}
        if not shared:
            heads = self.insert.integers(axis_size(site.query, 1) or 1)
            batch = op("Reshape", self.insert.length(site.query, 0), self.insert.integers(1))
            ones = self.insert.integers(*[1] * blocks.places.axes)
            mask = op("Expand", mask, op("Concat", batch, heads, ones, axis=0))
        first = self.insert.integers(1 if shared else -1)
        shape = op("Concat", first, blocks.count, blocks.size, blocks.width, axis=0)
        return op("Reshape", mask, shape)
