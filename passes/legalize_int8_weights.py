"""Every product of an int8 weight reads codes and zero points of its own."""

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
    """Name the zero points of int8 weights, and give every reader initializers of its own.

    Before, with codes int8 [K, N] and scales [N]::

        w  = DequantizeLinear(codes, scales)
        y  = MatMul(a, w)        z = MatMul(b, w)

    After, ``codes_1`` having the content of ``codes``, and so its place in the file of weights::

        y  = MatMul(a, DequantizeLinear(codes, scales, codes_zero_point))
        z  = MatMul(b, DequantizeLinear(codes_1, scales, codes_1_zero_point))

    On CPUs without VNNI, onnxruntime makes weights unsigned at load, lest sums of products u8 * s8
    be cut off. It does so for each reader, and fails at the second one of an initializer; and where
    there are no zero points, it gives one for all channels, which DequantizeLinear refuses.

    Needs: codes and scales as initializers. Leaves alone: what looks rows up. Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear of an int8 weight that has something to share or to name."""
        return [node for node in nodes_of(graph, "DequantizeLinear") if _is_site(node)]

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Give each reader of one widened weight a DequantizeLinear of its own."""
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
    codes, zeros, wide = node.inputs[0], input_at(node, 2), node.outputs[0]
    if codes is None or not is_weight(codes) or codes.dtype != ir.DataType.INT8:
        return False
    shares = len(wide.uses()) + wide.is_graph_output() > 1
    return zeros is None or shares or _is_shared(codes) or _is_shared(zeros)


def _is_shared(value: ir.Value) -> bool:
    """Whether more than one DequantizeLinear reads an initializer."""
    return sum(standard(user, "DequantizeLinear") for user, _ in value.uses()) > 1


def _own_initializers(graph: Graph, node: ir.Node | None) -> None:
    assert node is not None and node.inputs[0] is not None
    codes, zeros = node.inputs[0], input_at(node, 2)
    if _is_shared(codes):
        codes = _copy(graph, codes)
        node.replace_input_with(0, codes)
    if zeros is None:
        scales = node.inputs[1]
        assert scales is not None and scales.shape is not None
        array = np.zeros(scales.shape.numpy(), np.int8)
        name = f"{codes.name}_zero_point"
        node.resize_inputs(3)
        node.replace_input_with(2, initializer(graph, ir.tensor(array, name=name)))
    elif _is_shared(zeros):
        node.replace_input_with(2, _copy(graph, zeros))


def _copy(graph: Graph, value: ir.Value) -> ir.Value:
    """An initializer of the same content by another name."""
    tensor, known = value.const_value, graph.graph.initializers
    assert tensor is not None
    name = next(n for i in range(1, len(known) + 2) if (n := f"{value.name}_{i}") not in known)
    shape = ir.Shape(tensor.shape.numpy())
    same = ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)
    return initializer(graph, same)
