"""Transposes the integers of weights, which is done at load, not what they are dequantized to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at, nodes_of, replace_output, standard
from omnigraph.passes.site_pass import SitePass

_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
_FACTOR = 1


@dataclass(frozen=True)
class TransposeStoredWeights(SitePass):
    """Let products read integers [K, N] where weights are stored as [N, K].

    Before, with an integer table [N, K] that embeddings look up too, and a layer of two axes::

        y = MatMul(x, Transpose(DequantizeLinear[axis=0](table, scales)))
        z = Gemm[transB=1](x, DequantizeLinear[axis=0](values, scales), bias)

    After::

        y = MatMul(x, DequantizeLinear[axis=1](Transpose(table), scales))
        z = Gemm(x, DequantizeLinear[axis=1](Transpose(values), scales), bias)

    onnxruntime folds the Transpose of a constant at load, and multiplies by integers (MatMulNBits)
    only where they are [K, N]. A table it would dequantize, transpose and quantize again at load,
    which took three times the time and the memory. Scales of blocks are transposed too.

    Needs: a weight of integers with one reader. Leaves alone: lookups of rows. Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear of a weight whose one reader transposes it."""
        return [n for n in nodes_of(graph, "DequantizeLinear") if _is_stored(n) and _turning(n)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Transpose what one DequantizeLinear reads."""
        reader, before = _turning(node), Inserter(node)
        assert reader is not None
        blocks = node.attributes.get_int("block_size", 0) > 0
        for index in range(len(node.inputs) if blocks else 1):
            if (value := input_at(node, index)) is not None:
                node.replace_input_with(index, before.op("Transpose", value, perm=[1, 0]))
        axis = node.attributes.get_int("axis", 1) % 2
        node.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
        wide = node.outputs[0]
        assert wide.shape is not None
        wide.shape = ir.Shape(reversed(list(wide.shape)))
        if standard(reader, "Gemm"):
            reader.attributes["transB"] = ir.AttrInt64("transB", 0)
        else:
            replace_output(reader.outputs[0], wide)
            graph.graph.remove(reader, safe=True)
        return "before DequantizeLinear"


def _is_stored(node: ir.Node) -> bool:
    values, wide = node.inputs[0], node.outputs[0]
    if values is None or not is_weight(values) or values.dtype not in _INTEGERS:
        return False
    return wide.shape is not None and len(wide.shape) == 2


def _turning(node: ir.Node) -> ir.Node | None:
    """The one reader of a dequantized weight, where it transposes it."""
    wide = node.outputs[0]
    uses = list(wide.uses())
    if len(uses) != 1 or wide.is_graph_output():
        return None
    reader, index = uses[0]
    if standard(reader, "Transpose"):
        turned = list(reader.attributes.get_ints("perm", (1, 0))) == [1, 0]
        return reader if turned and not reader.outputs[0].is_graph_output() else None
    turned = standard(reader, "Gemm") and reader.attributes.get_int("transB", 0) == 1
    return reader if turned and index == _FACTOR else None
