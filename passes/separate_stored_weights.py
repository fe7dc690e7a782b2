"""Gives every reader of a weight of integers the values, scales and zero points of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.stored_weights import initializer
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at, nodes_of, standard
from omnigraph.passes.site_pass import Miss, SitePass

_VALUES, _SCALES, _ZEROS = 0, 1, 2
_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(frozen=True)
class SeparateStoredWeights(SitePass):
    """Give every reader of a weight of integers initializers of its own, and int8 zero points.

    Before, with quantized values int8 [K, N] and scales [N]::

        w  = DequantizeLinear(values, scales)
        y  = MatMul(a, w)        z = MatMul(b, w)

    After, where ``values_1`` has the content of ``values``, and so its place in the weights file::

        y  = MatMul(a, DequantizeLinear(values, scales, values_zero_point))
        z  = MatMul(b, DequantizeLinear(values_1, scales_1, values_1_zero_point))

    onnxruntime multiplies by integers (MatMulNBits) only where nothing else reads the initializers
    of a weight: the scales of a table that embeddings and logits share, for example. Else it
    dequantizes the whole weight on each run.

    On CPUs without VNNI, onnxruntime makes weights unsigned at load, because sums of products
    u8 * s8 would saturate. It does so for each reader, and fails at the second reader of an
    initializer. Where there are no zero points, it adds one for all channels, which
    DequantizeLinear refuses.

    Needs: quantized values as initializers, and the scales of int8 without zero points. Leaves
    alone: lookups of rows. Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear of a weight that shares something, or is int8 without zeros."""
        return [node for node in nodes_of(graph, "DequantizeLinear") if _is_site(node)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Give each reader of one dequantized weight a DequantizeLinear of its own."""
        scales = node.inputs[_SCALES]
        if _lacks_zeros(node) and (scales is None or not is_weight(scales)):
            raise Miss("its scales are no constants")
        wide = node.outputs[0]
        readers = list(wide.uses())
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        for reader, index in readers if wide.is_graph_output() else readers[1:]:
            own = Inserter(reader).op("DequantizeLinear", *node.inputs, **attributes)
            own.type, own.shape = wide.type, wide.shape
            reader.replace_input_with(index, own)
            _own_initializers(graph, own.producer())
        _own_initializers(graph, node)
        return f"{len(readers)} of its own"


def _is_site(node: ir.Node) -> bool:
    values, wide = node.inputs[_VALUES], node.outputs[0]
    if values is None or not is_weight(values) or values.dtype not in _INTEGERS:
        return False
    several = len(wide.uses()) + wide.is_graph_output() > 1
    return several or _lacks_zeros(node) or any(_is_shared(node, i) for i in range(_ZEROS + 1))


def _lacks_zeros(node: ir.Node) -> bool:
    values = node.inputs[_VALUES]
    return (
        input_at(node, _ZEROS) is None and values is not None and values.dtype == ir.DataType.INT8
    )


def _is_shared(node: ir.Node, index: int) -> bool:
    """Whether something else reads an initializer of a DequantizeLinear.

    Values may be looked up too: a product of a table reads them transposed, and onnxruntime
    transposes a copy at load.
    """
    value = input_at(node, index)
    if value is None or not is_weight(value):
        return False
    kinds = ("DequantizeLinear", "Gather") if index == _SCALES else ("DequantizeLinear",)
    return sum(standard(user, *kinds) for user, _ in value.uses()) > 1


def _own_initializers(graph: Graph, node: ir.Node | None) -> None:
    assert node is not None
    for index in range(_ZEROS + 1):
        if _is_shared(node, index):
            node.replace_input_with(index, _copy(graph, node.inputs[index]))
    if _lacks_zeros(node):
        values, scales = node.inputs[:_ZEROS]
        assert values is not None and scales is not None and scales.shape is not None
        array = np.zeros(scales.shape.numpy(), np.int8)
        node.resize_inputs(_ZEROS + 1)
        zeros = ir.tensor(array, name=f"{values.name}_zero_point")
        node.replace_input_with(_ZEROS, initializer(graph, zeros))


def _copy(graph: Graph, value: ir.Value | None) -> ir.Value:
    """An initializer of the same content with another name."""
    assert value is not None and value.const_value is not None
    tensor, known = value.const_value, graph.graph.initializers
    name = next(n for i in range(1, len(known) + 2) if (n := f"{value.name}_{i}") not in known)
    shape = ir.Shape(tensor.shape.numpy())
    same = ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)
    return initializer(graph, same)
