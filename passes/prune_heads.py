"""Removes attention heads from the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.passes.analysis.pruning.head_layout import HeadLayout, kept_numbers
from omnigraph.passes.analysis.pruning.head_removal import HeadRemoval
from omnigraph.passes.analysis.pruning.importance import least_important, read_importance
from omnigraph.passes.analysis.pruning.output_projection import find_output_projection
from omnigraph.passes.analysis.pruning.slicer import AxisSlicer
from omnigraph.passes.matching import nodes_of
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class PruneHeads(SitePass):
    """Remove the attention heads that add nothing, or that are named, from the weights.

    Before, where a gate closes heads 1 and 3 of 4, and weighs head 2 by a half::

        q, k, v = heads(x @ Wq + bq, 4), heads(x @ Wk + bk, 4), heads(x @ Wv + bv, 4)
        y       = merge(Attention(q, k, v, bias [1, 4, T, S]) * [1, 0, 0.5, 0]) @ Wo

    After, with the columns of heads 0 and 2, and the gate in the rows of ``Wo``::

        q, k, v = heads(x @ Wq' + bq', 2), heads(x @ Wk' + bk', 2), heads(x @ Wv' + bv', 2)
        y       = merge(Attention(q, k, v, bias' [1, 2, T, S])) @ Wo'

    A head adds nothing where a constant gate on the attention's output is 0 for it, or where its
    rows of the output projection are 0. Other heads go only where ``heads``, or ``importance`` and
    ``keep``, say so. The numbers are then those of the model with a gate of 0 on these heads, and
    an export that asks for this is compared with that model.

    A key head that several query heads share goes when all of these go. Each key head that stays
    needs equally many query heads: where too few would be left, some of those to remove stay, with
    rows of 0. Packed projections become one for each of query, key and value. A mask with heads is
    sliced at its source where its ops can be followed; else a Gather before the Attention does it.

    Args:
        heads: the heads to remove, by the module path of the attention, numbered as in the model.
        importance: a file with a number for each head (`read_importance`).
        keep: how many of the most important heads each attention keeps.
        boundary: whether inputs and outputs of the program, such as a past, may lose heads too.

    Needs: an Attention node, and constant projections. Leaves alone: heads that anything but the
    output projection reads.
    """

    heads: tuple[tuple[str, tuple[int, ...]], ...] = ()
    importance: str | None = None
    keep: int | None = None
    boundary: bool = False

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Attention."""
        return nodes_of(graph, "Attention")

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Remove the heads of one Attention that can go."""
        attention = HeadLayout.of(node)
        path = find_output_projection(node.outputs[0], *attention.output_axis())
        silent = path.silent(attention.queries)
        gone = silent | self._named(node, attention)
        if not gone and not path.constants:
            raise Miss("each of its heads gives something")
        if len(gone) == attention.queries:
            raise Miss("all of its heads would go")
        query, key = attention.keep(gone)
        still = gone & set(query)
        if len(query) == attention.queries and still <= silent and not path.constants:
            raise Miss("each key head must keep as many query heads")
        slicer = AxisSlicer(graph, boundary=self.boundary)
        plan = HeadRemoval(graph, attention, path, query, key, slicer)
        try:
            plan.make()
        except Miss:
            slicer.discard()
            raise
        plan.apply(silenced=still)
        text = f"{len(query)} of {attention.queries} heads"
        if attention.keys < attention.queries:
            text += f", {len(key)} of {attention.keys} key heads"
        return text + (f", {len(still)} of them with rows of 0" if still else "")

    def _named(self, node: ir.Node, attention: HeadLayout) -> set[int]:
        """The heads that the options remove, by their places in the node."""
        path = node.metadata_props.get(MODULE_KEY, "")
        removed = set(dict(self.heads).get(path, ()))
        if self.importance is not None:
            scores = read_importance(self.importance)
            if path in scores and self.keep is not None:
                removed |= set(least_important({path: scores[path]}, self.keep).get(path, ()))
        numbers = kept_numbers(node, attention.queries)
        return {place for place, number in enumerate(numbers) if number in removed}
