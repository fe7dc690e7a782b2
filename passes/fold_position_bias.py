"""Folds position biases and position tables into the fewest numbers that algebra allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import onnx_ir as ir

from omnigraph.contract.graph_check import longest_contraction, rounding_depth
from omnigraph.contract.tolerance import UNIT_ROUNDOFF, Tolerance
from omnigraph.graph import Graph
from omnigraph.passes.analysis.attention.mask import KEY, QUERY, meaning
from omnigraph.passes.analysis.block_sparse.attention import BLOCKS_KEY
from omnigraph.passes.analysis.index import Expression, NotClosed, coordinates
from omnigraph.passes.analysis.position.bias import (
    HIDES_ALL,
    PositionBias,
    position_biases,
    slope_times_distance,
)
from omnigraph.passes.analysis.position.bias_forms import (
    Folding,
    constant_form,
    product_form,
    row_form,
    toeplitz_form,
)
from omnigraph.passes.analysis.position.table import fold_table, largest, table_sites
from omnigraph.passes.analysis.position.toeplitz import is_spanned
from omnigraph.passes.matching import input_at, nodes_of
from omnigraph.passes.site_pass import Miss, SitePass
from omnigraph.precision import FLOAT_TYPES

_MASK = 3


@dataclass(frozen=True)
class FoldPositionBias(SitePass):
    """Compute a position bias as a row or a table of numbers, not anew for every score.

    Before, for causal ALiBi::

        mask = Where(visible [T, S], slopes [H, 1, 1] * (j - i), -inf)

    After (form 2 below)::

        mask = slopes * Range(1 - S, 1) [H, 1, S] + Where(visible, 0, -inf)

    A bias [.., H, T, S] in a mask ``Where(visible, bias, hidden)`` or ``bias + hiding`` becomes the
    first of these forms that is possible:

    1. A constant, where its sizes are fixed and it fits in ``budget_bytes``.
    2. One row per head [H, 1, S], where it is ``f(key) + g(query)`` for visible keys: a number that
       is added to a whole row does not change its softmax. Causal ALiBi becomes
       ``slope * (j - (S - 1))``. The sum of score and bias is then rounded at up to ``slope * S``:
       the declared range of S must keep these roundings within half the contract's tolerance.
    3. ``Mul(Where(visible, distance, far), slopes)``, where it is a slope for each head times a
       distance: one product for each score, and nothing before it is of the size [H, T, S].
    4. A Toeplitz matrix, where it is a function of ``j - i``: each call makes a row [T + S, H],
       which one Gather reads. Where the function does not change beyond some distance, the row
       comes from a constant table, which holds T5's logarithms and look-ups.

    A new bias of bounded numbers is added: ``bias + Where(visible, 0, hidden)``. It has the numbers
    of ``Where(visible, bias, hidden)``, and onnxruntime adds several times faster than it chooses.

    Of consecutive positions, a look-up in a learned table becomes a Slice of that table, from the
    past on. Sines and cosines become a Slice of a new table, as long as the declared ranges need.

    Needs: `fuse-attention` before it; names of dimensions, and their ranges for rows and tables.
    Leaves alone: what depends on data, such as positions counted by an attention mask; masks of
    booleans.

    Args:
        budget_bytes: the most bytes of a constant that is made here.
        rows_of_products: whether form 4 comes before form 3; on CPUs form 4 moves more memory than
            it saves operations.
    """

    budget_bytes: int = 1 << 20
    rows_of_products: bool = False

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """One Attention for each mask of numbers; each node that makes numbers of positions."""
        seen = set[ir.Value]()
        for node in nodes_of(graph, "Attention"):
            mask = input_at(node, _MASK)
            if mask is None or mask.dtype == ir.DataType.BOOL or mask in seen:
                continue
            if BLOCKS_KEY in node.metadata_props:  # its mask is made of blocks, as small as it gets
                continue
            seen.add(mask)
            if ir.convenience.get_const_tensor(mask) is None:
                yield node
        yield from table_sites(graph)

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one site."""
        if node.op_type != "Attention":
            return fold_table(graph, node, self.budget_bytes)
        try:
            found = list(position_biases(node))
            mask = node.inputs[_MASK]
            assert mask is not None
            whole = meaning(mask)
        except NotClosed as error:
            raise Miss(f"the mask is not a formula of positions: {error}", error.at) from error
        if not found:
            raise Miss("the mask adds no bias of positions alone")
        hides = whole.hidden is not None and whole.hidden <= HIDES_ALL
        sites = self._foldings(graph, found, whole.visible if hides else ())
        for form in (constant_form, row_form, product_form, toeplitz_form):
            for site in sites:
                if (became := form(site)) is not None:
                    return became
        if any(slope_times_distance(bias.expression) for bias in found):
            raise Miss("a distance times a slope is one product for each score already")
        raise Miss("the bias is no function of key less query position", found[0].value.producer())

    def _foldings(
        self, graph: Graph, found: list[PositionBias], visible: tuple[Expression, ...]
    ) -> list[Folding]:
        if any(is_spanned(bias.value) for bias in found):
            raise Miss("the bias is read out of a row already", found[0].value.producer())
        kept = [bias for bias in found if {QUERY, KEY} <= coordinates(bias.expression)]
        if not kept:
            raise Miss("the bias is one row per head already", found[0].value.producer())
        fixed = [bias for bias in kept if bias.heads is not None]
        if not fixed:
            raise Miss("the number of heads is not fixed", kept[0].value.producer())
        return [
            Folding(
                graph,
                bias,
                visible,
                self.budget_bytes,
                largest(graph, bias.dims[3]),
                self._roundable(graph, bias.expression.type),
                self.rows_of_products,
            )
            for bias in fixed
        ]

    def _roundable(self, graph: Graph, dtype: ir.DataType) -> float:
        """The largest number at which the scores of every layer may be rounded once more.

        Each layer's rounding has a variance of a third of ``(u * number)^2``. Over the layers they
        add like a random walk, and may take half the tolerance of the contract.
        """
        precision = FLOAT_TYPES[dtype.name]
        layers = sum(1 for _ in nodes_of(graph, "Attention"))
        tolerance = Tolerance.for_precision(
            precision, depth=rounding_depth(graph), contraction=longest_contraction(graph)
        )
        return tolerance.rms / 2 / UNIT_ROUNDOFF[precision] / sqrt(layers / 3)
