"""Stores weights that the Graph quantizes as integers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.stored_weights import (
    StoredWeight,
    dequantized,
    look_up,
    store,
    stored_before,
)
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at, nodes_of, standard
from omnigraph.passes.site_pass import Miss, SitePass

#: Scales, zero points, their axis, and the integer type.
_Grid = tuple[np.ndarray, np.ndarray | None, int, ir.DataType]
_TYPES = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class StoreQuantizedWeights(SitePass):
    """Round a weight once, at export, where the Graph rounds it on each run.

    Before, as quantization-aware training leaves it, with a constant scale::

        w_ = DequantizeLinear(QuantizeLinear(weight, scale, zero), scale, zero)
        y  = MatMul(x, Transpose(w_))        h = Gather(w_, ids)

    After, with integers (transposed as the layer reads them, unless an embedding uses them too)::

        y  = MatMul(x, DequantizeLinear(integers, scale, zero))
        h  = Gather(integers, ids) · Gather(scale, ids)

    Needs: scales and zero points that are initializers, or constants. Leaves alone: weights whose
    integers other nodes read, and all but weights of two axes with a scale for each index of one.
    Exact: it rounds as QuantizeLinear does (ONNX QuantizeLinear-24), halves to even.
    """

    rounds: ClassVar[bool] = False

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every QuantizeLinear of a weight."""
        for node in nodes_of(graph, "QuantizeLinear"):
            weight = node.inputs[0]
            if weight is not None and is_weight(weight):
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Store one weight's integers, and let all its readers read them."""
        weight, scale, zero = node.inputs[0], node.inputs[1], input_at(node, 2)
        assert weight is not None and weight.const_value is not None and weight.name is not None
        scales, zeros = _array(scale), _array(zero)
        if scales is None or (zero is not None and zeros is None):
            raise Miss("its scale or its zero point is no constant")
        rank = len(weight.shape or ())
        axis = node.attributes.get_int("axis", 1) % rank if rank else 0
        if rank != 2 or scales.ndim != 1 or node.attributes.get_int("block_size", 0) > 0:
            raise Miss("it has not one scale for each index of one of two axes")
        dtype = node.outputs[0].dtype or (zero.dtype if zero is not None else None)
        if dtype not in _TYPES:
            raise Miss("its quantized values are not of eight bits")
        users = [user for user, _ in node.outputs[0].uses()]
        if node.outputs[0].is_graph_output() or not all(
            standard(user, "DequantizeLinear") and input_at(user, 1) is scale for user in users
        ):
            raise Miss("its quantized values are read by something else")
        if any(user.outputs[0].is_graph_output() for user in users):
            raise Miss("the rounded weight is an output of the program")
        # An embedding stored its table by rows: the logits read that table, not a transposed copy.
        shared = stored_before(graph, f"{weight.name}_{dtype.name.lower()}") is not None or any(
            standard(reader, "Gather") for user, _ in weight.uses() for reader in _readers(user)
        )
        for user in users:
            self._replace(graph, user, weight, (scales, zeros, axis, dtype), shared)
        graph.graph.remove(node, safe=True)
        if not weight.uses() and not weight.is_graph_output():
            graph.graph.initializers.pop(weight.name, None)
        return f"{dtype.name.lower()} values"

    def _replace(
        self,
        graph: Graph,
        wide: ir.Node,
        weight: ir.Value,
        grid: _Grid,
        shared: bool,
    ) -> None:
        """Let all readers of one DequantizeLinear read the stored integers."""
        for reader, index in list(wide.outputs[0].uses()):
            if standard(reader, "Gather") and index == 0 and _is_rows(reader, grid):
                look_up(reader, _stored(graph, weight, grid, transposed=False))
                continue
            transposed = (
                standard(reader, "Transpose")
                and not shared
                and not reader.outputs[0].is_graph_output()
            )
            stored = _stored(graph, weight, grid, transposed=transposed)
            value = dequantized(Inserter(reader), stored, 1 - grid[2] if transposed else grid[2])
            if transposed:
                ir.convenience.replace_all_uses_with(reader.outputs[0], value)
                assert reader.graph is not None
                reader.graph.remove(reader, safe=True)
            else:
                reader.replace_input_with(index, value)
        assert wide.graph is not None
        wide.graph.remove(wide, safe=True)


def _readers(quantize: ir.Node) -> list[ir.Node]:
    """The nodes that read a weight behind its QuantizeLinear and DequantizeLinear."""
    return [
        reader
        for wide, _ in quantize.outputs[0].uses()
        for reader, _ in (wide.outputs[0].uses() if wide.outputs else ())
    ]


def _is_rows(gather: ir.Node, grid: _Grid) -> bool:
    """Whether a Gather looks up rows with one scale each and no zero point."""
    _, zeros, axis, _ = grid
    symmetric = zeros is None or not zeros.any()
    return gather.attributes.get_int("axis", 0) == 0 == axis and symmetric


def _stored(graph: Graph, weight: ir.Value, grid: _Grid, *, transposed: bool) -> StoredWeight:
    """The initializers of the quantized weight, transposed or not; stored at the first call."""
    scales, zeros, axis, dtype = grid
    tensor = weight.const_value
    assert tensor is not None
    name = f"{weight.name}{'_T' if transposed else ''}_{dtype.name.lower()}"
    if (known := stored_before(graph, name)) is not None:
        return known
    limits = np.iinfo(dtype.numpy())

    def quantized() -> ir.TensorProtocol:
        shape = [1, 1]
        shape[axis] = -1
        rounded = np.rint(tensor.numpy() / scales.reshape(shape))
        if zeros is not None:
            rounded += zeros.astype(np.float32).reshape(shape)
        array = np.clip(rounded, limits.min, limits.max).astype(dtype.numpy())
        array = np.ascontiguousarray(array.T if transposed else array)
        return ir.tensor(array, dtype=dtype, name=name)

    shape = [int(size) for size in tensor.shape]  # type: ignore[arg-type]
    lazy = ir.LazyTensor(
        quantized, dtype=dtype, shape=ir.Shape(shape[::-1] if transposed else shape), name=name
    )
    zero_points = None
    if zeros is not None and zeros.any():
        zero_points = ir.tensor(zeros, dtype=dtype)
    return store(graph, lazy, ir.tensor(scales), zero_points)


def _array(value: ir.Value | None) -> np.ndarray | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())
