"""Attention whose mask shows each query few keys becomes Attention of blocks over those keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph, range_of
from omnigraph.passes.analysis.block_sparse.attention import BLOCKS_KEY, MASK, BlockAttention, Site
from omnigraph.passes.analysis.block_sparse.layout import BlockPattern, Window, pattern_of
from omnigraph.passes.analysis.block_sparse.mask import check
from omnigraph.passes.analysis.block_sparse.reach import reach
from omnigraph.passes.analysis.index import Linear, every
from omnigraph.passes.matching import axis_size, input_at, nodes_of
from omnigraph.passes.site_pass import Miss, SitePass


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
        products: write the blocks out as products and a softmax, which OpenVINO fuses as well; an
            Attention whose sizes are not known it gives a padded copy of the mask, and of the keys
            a transposed one.
        shortest: lengths that are known or declared to be less are left to the dense form, which
            is then as fast (``python -m benchmarks.sparse_attention``).
        at_once: the most heads whose scores are held at one time, where they share a mask.
    """

    block: int = 128
    products: bool = False
    shortest: int = 1024
    at_once: int = 4

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Attention with a mask that is not of blocks already."""
        for node in nodes_of(graph, "Attention"):
            if input_at(node, MASK) is not None and BLOCKS_KEY not in node.metadata_props:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Put blocks in the place of one Attention."""
        site = Site.of(node)
        pattern = pattern_of(reach(every(site.mask.visible), site.past))
        check(site.mask.expression, graph.graph)
        if site.mask.hidden not in (None, float("-inf")) and not site.every_row_sees():
            raise Miss("a row may be hidden entirely by a finite number: the mean of all values")
        if isinstance(pattern, BlockPattern) and site.past != Linear(0):
            raise Miss("queries and keys differ in number, and so do the blocks they are in")
        for axis, value in ((2, site.query), (2, site.key)):
            most = _longest(graph, value, axis)
            if most is not None and most < self.shortest:
                raise Miss(f"lengths up to {most} are less than {self.shortest}: the dense form")
        block = BlockAttention(graph.graph, site, self.block, self.products, self.at_once)
        block.replace(pattern)
        form = "products of blocks" if self.products else "Attention of blocks"
        if isinstance(pattern, Window):
            return f"{form}: keys from {pattern.low} to {pattern.high} of the query"
        kinds = f"{pattern.high - pattern.low + 1} near, {pattern.columns} first"
        return f"{form} of {pattern.unit}: {kinds}, {len(pattern.drawn)} drawn"


def _longest(graph: Graph, value: ir.Value, axis: int) -> int | None:
    """The most that an axis can be, where that is known or declared."""
    size = axis_size(value, axis)
    if size is not None or value.shape is None:
        return size
    dim = value.shape[axis]
    return range_of(graph, str(dim.value))[1] if isinstance(dim, ir.SymbolicDim) else None
