"""Dequantizes an integer table before its rows are looked up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    constant,
    input_at,
    made_by,
    nodes_of,
    only_use,
    rank,
    remove_unused,
    replace_output,
    standard,
)
from omnigraph.passes.site_pass import Miss, SitePass

_INTEGERS = (ir.DataType.INT8, ir.DataType.INT4)


@dataclass(frozen=True)
class LegalizeIntegerLookups(SitePass):
    """Dequantize an integer table before its rows are looked up, not after.

    Before, with quantized values [V, C] of int8 or int4 and a scale for each row::

        y = Mul(Cast(Gather(values, ids)), Unsqueeze[axes=-1](Gather(scales, ids)))

    After::

        y = Gather(DequantizeLinear[axis=0](values, scales), ids)

    For targets that take integer weights in a DequantizeLinear alone. A compiler that fuses the two
    nodes dequantizes only the rows that it looks up. Where logits dequantize the same table,
    `EliminateCommonSubexpressions` merges the two DequantizeLinear.

    Needs: quantized values and scales as initializers. Leaves alone: tables with zero points.
    Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every lookup in a constant table of integers."""
        return [node for node in nodes_of(graph, "Gather") if _reads_integers(node)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Rewrite one lookup."""
        values, ids = node.inputs[0], node.inputs[1]
        assert values is not None
        if node.attributes.get_int("axis", 0) != 0 or rank(values) != 2:
            raise Miss("it does not look up rows of a matrix")
        cast = only_use(node.outputs[0])
        if cast is None or not standard(cast, "Cast"):
            raise Miss("its rows are not widened by a Cast alone", cast)
        product = only_use(cast.outputs[0])
        if product is None or not standard(product, "Mul"):
            raise Miss("its rows are not multiplied by their scales alone", product)
        scales = _scales(product, cast, ids)
        before = Inserter(product)
        wide = before.op("DequantizeLinear", values, scales, axis=0)
        replace_output(product.outputs[0], before.op("Gather", wide, ids, axis=0))
        remove_unused(product)
        return f"Gather of a widened {values.dtype.name.lower() if values.dtype else ''} table"


def _reads_integers(node: ir.Node) -> bool:
    table = node.inputs[0]
    return table is not None and is_weight(table) and table.dtype in _INTEGERS


def _scales(product: ir.Node, cast: ir.Node, ids: ir.Value | None) -> ir.Value:
    """The scale of each row, from the factor of the rows that are looked up."""
    other = product.inputs[1 if product.inputs[0] is cast.outputs[0] else 0]
    column = made_by(other, "Unsqueeze")
    lookup = made_by(column.inputs[0], "Gather") if column is not None else None
    if column is None or lookup is None or lookup.inputs[1] is not ids:
        raise Miss("what its rows are multiplied with are not scales of the same rows", product)
    axes = constant(input_at(column, 1))
    if axes is None or axes.tolist() not in ([-1], [rank(ids)]):
        raise Miss("its scales do not stand for whole rows", column)
    scales = lookup.inputs[0]
    if scales is None or not is_weight(scales) or rank(scales) != 1:
        raise Miss("its scales are not one constant for each row", lookup)
    if scales.dtype != cast.outputs[0].dtype:
        raise Miss("its rows and their scales are of two types", product)
    return scales
