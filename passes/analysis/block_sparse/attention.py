"""Rewrites one Attention as Attention of blocks, whose inputs are gathered at the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.analysis.attention.mask import BATCH, HEAD, KEY, QUERY, MaskMeaning, meaning
from omnigraph.passes.analysis.block_sparse.layout import BlockPattern, Blocks, Layout, Window
from omnigraph.passes.analysis.block_sparse.mask import block_mask
from omnigraph.passes.analysis.index import (
    TRUE,
    Linear,
    NotClosed,
    bounds,
    coordinate,
    coordinates,
    dimension,
    every,
    substitute,
)
from omnigraph.passes.decompose_attention import write_out
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    input_at,
    rank,
    remove_unused,
    replace_output,
)
from omnigraph.passes.site_pass import Miss

MASK = 3
_SCORES_OUTPUT = 3
#: Metadata of an Attention that is in blocks already.
BLOCKS_KEY = "omnigraph.blocks"


@dataclass(frozen=True)
class Site:
    """An Attention of four axes, and the meaning of its mask.

    Args:
        query: [B, H, T, D].
        key, value: [B, G, S, D], with as many heads or fewer.
        mask: the meaning of its mask.
        past: S - T.
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: MaskMeaning
    past: Linear

    @classmethod
    def of(cls, node: ir.Node) -> Site:
        """The site of an Attention with a mask.

        Raises:
            Miss: it has another form, or its mask cannot be read.
        """
        query, key, value = (v for v in node.inputs[:3] if v is not None)
        if "q_num_heads" in node.attributes or any(rank(v) != 4 for v in (query, key, value)):
            raise Miss("its heads are not axes of their own")
        if any(v is not None for v in node.inputs[MASK + 1 :]):
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
        mask = input_at(node, MASK)
        assert mask is not None
        try:
            found = meaning(mask)
        except NotClosed as stopped:
            raise Miss(f"the mask is not read: {stopped.reason}", at=stopped.at) from stopped
        return cls(node, query, key, value, found, keys - queries)

    def every_row_sees(self) -> bool:
        """Whether each query is sure to see the key at its own position."""
        own = {KEY: coordinate(QUERY) + self.past}
        return bounds(self.past)[0] >= 0 and substitute(every(self.mask.visible), own) == TRUE


class BlockAttention:
    """Replaces one Attention by blocks.

    Args:
        block: the most queries in a block of a window.
        products: whether to write products and a softmax in place of Attention.
        at_once: the most heads whose scores are held at one time; 0 is all. Where heads have masks
            of their own, all are held at once.
    """

    def __init__(
        self, graph: ir.Graph, site: Site, block: int, products: bool, at_once: int = 0
    ) -> None:
        self.graph, self.site, self.block, self.products = graph, site, block, products
        self.at_once = at_once
        self.insert, self.made = Inserter(site.node), list[ir.Node]()
        self.layout = Layout(self.insert, site.query, site.key)

    def replace(self, pattern: Window | BlockPattern) -> None:
        """Replace the Attention by the blocks of a pattern."""
        site, op = self.site, self.insert.op
        heads, size = axis_size(site.query, 1), axis_size(site.value, 3)
        assert heads is not None and size is not None
        if isinstance(pattern, Window):
            blocks = self.layout.window(pattern, self.block, site.past)
        else:
            blocks = self.layout.blocks(pattern, self.graph)
        mask = self._mask(blocks)
        key, value = self._per_query(site.key), self._per_query(site.value)
        rows = op("Mul", blocks.count, blocks.size)
        parts = []
        for start, stop in self._groups(heads):
            part = self._attention(
                self._read(
                    self._heads(site.query, start, stop), blocks.rows, blocks.count, blocks.size
                ),
                self._read(
                    self._heads(key, start, stop), blocks.columns, blocks.count, blocks.width
                ),
                self._read(
                    self._heads(value, start, stop), blocks.columns, blocks.count, blocks.width
                ),
                self._for_heads(mask, blocks, stop - start),
            )
            first, last = self.insert.integers(-1, stop - start), self.insert.integers(size)
            whole = op("Concat", first, rows, last, axis=0)
            parts.append(op("Reshape", part, whole))  # [B, H, N*b, D]
        result = parts[0] if len(parts) == 1 else op("Concat", *parts, axis=1)
        ends = self.insert.integers(0), op("Reshape", self.layout.queries, self.insert.integers(1))
        if isinstance(pattern, BlockPattern) and pattern.rows:
            seeing = pattern.rows * pattern.unit
            rest = op(
                "Slice",
                result,
                self.insert.integers(seeing),
                self.insert.integers(2**62),
                self.insert.integers(2),
            )
            result = op("Concat", self._top(seeing), rest, axis=2)
        result = op("Slice", result, *ends, self.insert.integers(2))
        replace_output(site.node.outputs[0], result)
        remove_unused(site.node)
        if self.products:
            for node in self.made:
                write_out(node)

    def _attention(self, *inputs: ir.Value) -> ir.Value:
        kept = {n: a.value for n, a in self.site.node.attributes.items() if n != "is_causal"}
        new = self.insert.node("Attention", *inputs, **kept)
        new.metadata_props[BLOCKS_KEY] = "1"
        self.made.append(new)
        return new.outputs[0]

    def _top(self, rows: int) -> ir.Value:
        """The first queries, which see every key: [B, H, rows, D]."""
        index, places, positions = self.layout.top(rows)
        mask = block_mask(
            self.insert, self.graph, self.site.mask.expression, places, positions, None
        )
        missing = 4 - (rank(mask) or 4)
        if missing:
            mask = self.insert.op("Unsqueeze", mask, self.insert.integers(*range(missing)))
        query = self.insert.op("Gather", self.site.query, index, axis=2)
        return self._attention(query, self.site.key, self.site.value, mask)

    def _read(self, value: ir.Value, index: ir.Value, count: ir.Value, size: ir.Value) -> ir.Value:
        """[B, H, T, D] at an index [N, b] -> [B*H, N, b, D]."""
        read = self.insert.op("Gather", value, index, axis=2)
        last = self.insert.integers(axis_size(value, 3) or -1)
        shape = self.insert.op("Concat", self.insert.integers(-1), count, size, last, axis=0)
        blocks = self.insert.op("Reshape", read, shape)
        blocks.shape = ir.Shape([None, None, None, axis_size(value, 3)])  # kernels are chosen by D
        return blocks

    def _per_query(self, value: ir.Value) -> ir.Value:
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

    def _groups(self, heads: int) -> list[tuple[int, int]]:
        """The start and the stop of each group of heads that are computed at once."""
        by_head = HEAD in coordinates(self.site.mask.expression)
        size = heads if by_head or not self.at_once else self.at_once
        return [(start, min(start + size, heads)) for start in range(0, heads, size)]

    def _heads(self, value: ir.Value, start: int, stop: int) -> ir.Value:
        """Some heads of [B, H, T, D]."""
        if (start, stop) == (0, axis_size(value, 1)):
            return value
        part = self.insert.op(
            "Slice",
            value,
            self.insert.integers(start),
            self.insert.integers(stop),
            self.insert.integers(1),
        )
        assert value.shape is not None
        part.shape = ir.Shape([value.shape[0], stop - start, *list(value.shape)[2:]])
        return part

    def _mask(self, blocks: Blocks) -> ir.Value:
        """The mask [B or 1, H or 1, N, b, K]; leading axes are left out where all are 1."""
        return block_mask(
            self.insert,
            self.graph,
            self.site.mask.expression,
            blocks.places,
            blocks.positions,
            blocks.valid,
        )

    def _for_heads(self, mask: ir.Value, blocks: Blocks, heads: int) -> ir.Value:
        """The mask [B*H, N, b, K] of so many heads; [1, N, b, K] where batch and heads share it."""
        op = self.insert.op
        shared = not coordinates(self.site.mask.expression) & {BATCH, HEAD}
        if not shared:
            batch = op("Reshape", self.insert.length(self.site.query, 0), self.insert.integers(1))
            ones = self.insert.integers(*[1] * blocks.places.axes)
            mask = op(
                "Expand", mask, op("Concat", batch, self.insert.integers(heads), ones, axis=0)
            )
        first = self.insert.integers(1 if shared else -1)
        shape = op("Concat", first, blocks.count, blocks.size, blocks.width, axis=0)
        return op("Reshape", mask, shape)
