"""Gives every reader of an int8 weight quantized values and zero points of its own."""

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


@dataclass(frozen=True)
class LegalizeInt8Weights(SitePass):
    """Write the zero points of int8 weights, and give every reader initializers of its own.

    Before, with quantized values int8 [K, N] and scales [N]::

        w  = DequantizeLinear(values, scales)
        y  = MatMul(a, w)        z = MatMul(b, w)

    After, where ``values_1`` has the content of ``values``, and so its place in the weights file::

        y  = MatMul(a, DequantizeLinear(values, scales, values_zero_point))
        z  = MatMul(b, DequantizeLinear(values_1, scales, values_1_zero_point))

    On CPUs without VNNI, onnxruntime makes weights unsigned at load, because sums of products
    u8 * s8 would saturate. It does so for each reader, and fails at the second reader of an
    initializer. Where there are no zero points, it adds one for all channels, which
    DequantizeLinear refuses.

    Needs: quantized values and scales as initializers. Leaves alone: lookups of rows. Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear of an int8 weight with several readers, or without zero points."""
        return [node for node in nodes_of(graph, "DequantizeLinear") if _is_site(node)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Give each reader of one dequantized weight a DequantizeLinear of its own."""
        scales = node.inputs[1]
        if input_at(node, 2) is None and (scales is None or not is_weight(scales)):
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
    quantized, zeros, wide = node.inputs[0], input_at(node, 2), node.outputs[0]
    if quantized is None or not is_weight(quantized) or quantized.dtype != ir.DataType.INT8:
        return False
    several = len(wide.uses()) + wide.is_graph_output() > 1
    return zeros is None or several or _is_shared(quantized) or _is_shared(zeros)


def _is_shared(value: ir.Value) -> bool:
    """Whether more than one DequantizeLinear reads an initializer."""
    return sum(standard(user, "DequantizeLinear") for user, _ in value.uses()) > 1


def _own_initializers(graph: Graph, node: ir.Node | None) -> None:
    assert node is not None and node.inputs[0] is not None
    quantized, zeros = node.inputs[0], input_at(node, 2)
    if _is_shared(quantized):
        quantized = _copy(graph, quantized)
        node.replace_input_with(0, quantized)
    if zeros is None:
        scales = node.inputs[1]
        assert scales is not None and scales.shape is not None
        array = np.zeros(scales.shape.numpy(), np.int8)
        name = f"{quantized.name}_zero_point"
        node.resize_inputs(3)
        node.replace_input_with(2, initializer(graph, ir.tensor(array, name=name)))
    elif _is_shared(zeros):
        node.replace_input_with(2, _copy(graph, zeros))


def _copy(graph: Graph, value: ir.Value) -> ir.Value:
    """An initializer of the same content with another name."""
    tensor, known = value.const_value, graph.graph.initializers
    assert tensor is not None
    name = next(n for i in range(1, len(known) + 2) if (n := f"{value.name}_{i}") not in known)
    shape = ir.Shape(tensor.shape.numpy())
    same = ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)
    return initializer(graph, same)
