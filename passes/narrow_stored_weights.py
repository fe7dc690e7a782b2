"""Stores integers of weights in the fewest bits that hold them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.stored_weights import (
    StoredWeight,
    store,
    stored_before,
)
from omnigraph.passes.matching import input_at, made_by, nodes_of, standard
from omnigraph.passes.site_pass import Miss, SitePass

_UNSIGNED = {4: ir.DataType.UINT4, 8: ir.DataType.UINT8}
_SIGNED = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


@dataclass(frozen=True)
class NarrowStoredWeights(SitePass):
    """Store integers of four bits as such, and symmetric ones without their zero points.

    Before, with values and zero points that are no larger than 15::

        y = MatMul(x, DequantizeLinear(values uint8, scales, zero_points uint8))

    After; or, where every zero point is 8, with the values less 8::

        y = MatMul(x, DequantizeLinear(values uint4, scales, zero_points uint4))
        y = MatMul(x, DequantizeLinear(values int4, scales))

    Values of eight bits with zero points of 128 become int8 in the same way. torch has no tensors
    of four bits to trace, and TensorRT takes no zero points.

    Needs: values, scales and zero points that are initializers. Leaves alone: what something else
    reads too, and factors of quantized activations. Exact.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every DequantizeLinear of a uint8 weight of two axes."""
        for node in nodes_of(graph, "DequantizeLinear"):
            values = node.inputs[0]
            if values is None or values.dtype != ir.DataType.UINT8 or not is_weight(values):
                continue
            if len(values.shape or ()) == 2:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Store the integers of one weight, and let its DequantizeLinear read them."""
        values, scales, zeros = node.inputs[0], node.inputs[1], input_at(node, 2)
        if scales is None or zeros is None or not (is_weight(scales) and is_weight(zeros)):
            raise Miss("its scales or its zero points are no constants")
        assert values is not None
        if not all(standard(user, "DequantizeLinear") for user, _ in values.uses()):
            raise Miss("its integers are read by something else")
        if not all(_is_product(user, index) for user, index in node.outputs[0].uses()):
            raise Miss("it is not the weight of a product with floats alone")
        most = max(_array(part).max(initial=0) for part in (values, zeros))
        bits = 4 if most < 16 else 8
        middle = 1 << (bits - 1)
        symmetric = bool((_array(zeros) == middle).all())
        if bits == 8 and not symmetric:
            raise Miss("its integers need eight bits, and zero points")
        stored = _stored(graph, (values, scales, zeros), bits, middle if symmetric else 0)
        for index, value in enumerate(stored.values):
            node.replace_input_with(index, value)
        node.resize_inputs(len(stored.values))
        for value in (values, scales, zeros):
            if not value.uses() and not value.is_graph_output() and value.name is not None:
                graph.graph.initializers.pop(value.name, None)
        assert stored.quantized.dtype is not None
        return f"{stored.quantized.dtype.name.lower()} values"


def _stored(
    graph: Graph, parts: tuple[ir.Value, ir.Value, ir.Value], bits: int, offset: int
) -> StoredWeight:
    """The initializers of a weight in so many bits; signed, less the offset, where there is one."""
    values, scales, zeros = parts
    dtype = (_SIGNED if offset else _UNSIGNED)[bits]
    name = f"{values.name}_{dtype.name.lower()}"
    if (known := stored_before(graph, name)) is not None:
        return known

    def narrow(value: ir.Value) -> ir.TensorProtocol:
        array = _array(value)
        if offset:
            array = (array.astype(np.int16) - offset).astype(np.int8)
        return ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)

    assert values.const_value is not None
    shape = ir.Shape(values.const_value.shape)  # type: ignore[arg-type]
    lazy = ir.LazyTensor(lambda: narrow(values), dtype=dtype, shape=shape, name=name)
    zero_points = None if offset else narrow(zeros)
    return store(graph, lazy, ir.tensor(_array(scales)), zero_points)


def _is_product(user: ir.Node, index: int) -> bool:
    """Whether a node multiplies an activation, in float, by the value that it reads there."""
    if not standard(user, "MatMul", "Gemm") or index != 1:
        return False
    return made_by(input_at(user, 0), "DequantizeLinear") is None


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()
