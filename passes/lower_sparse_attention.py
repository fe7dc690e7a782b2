"""Computes Attention whose mask shows few keys to each query in blocks, over those keys alone."""

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

    Before, with q [B, H, T, D] and a mask that hides all keys but those near each query::

        y = Attention(q, k, v, mask [B or 1, H or 1, T, S])

    After, with N blocks of b queries, each of which sees K keys::

        qb = Reshape(Gather[axis=2](q, rows [N, b]), [B*H, N, b, D])
        kb = Reshape(Gather[axis=2](k, columns [N, K]), [B*H, N, K, D])       vb alike
        y  = Slice(Reshape(Attention(qb, kb, vb, mask at the blocks), [B, H, N*b, D]), T)

    The mask is read as an expression of positions (``analysis/attention/mask.py``). From the
    expression it is proved which keys the mask can show (``analysis/block_sparse/reach.py``). The
    elements of the mask are then computed at the blocks alone, with bias, padding and everything
    else in it; the T x S mask is never made. The first blocks of queries, where they see every key
    (OmniNet's global blocks), are an Attention of their own.

    Needs: shapes with known heads and named lengths; a mask made from positions. Exact: the
    attention weight of a hidden key is 0 both ways. Leaves alone: masks that may show every key;
    masks that may hide all keys of a row by a finite number, because such a row is the mean over
    all keys; Attention of three axes, with a past of its own, or with an output of the scores.

    Args:
        block: the most queries in a block of a window.
        products: whether to write blocks as products and a softmax in place of Attention. OpenVINO
            fuses these as well; for an Attention of unknown sizes it makes a padded copy of the
            mask and a transposed copy of the keys.
        shortest: an Attention whose lengths are known or declared to be less is left alone: its
            dense form is then as fast (``python -m benchmarks.sparse_attention``).
        at_once: the most heads whose scores are held at one time, where heads share a mask.
    """

    block: int = 128
    products: bool = False
    shortest: int = 1024
    at_once: int = 4

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Attention with a mask that is not in blocks already."""
        for node in nodes_of(graph, "Attention"):
            if input_at(node, MASK) is not None and BLOCKS_KEY not in node.metadata_props:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Compute one Attention in blocks."""
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
    """The largest size of an axis, if it is known or declared."""
    size = axis_size(value, axis)
    if size is not None or value.shape is None:
        return size
    dim = value.shape[axis]
    return range_of(graph, str(dim.value))[1] if isinstance(dim, ir.SymbolicDim) else None
