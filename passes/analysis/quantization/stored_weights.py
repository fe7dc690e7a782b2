"""Weights that are stored as integers, and how a Graph reads them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter


@dataclass(frozen=True, eq=False)
class StoredWeight:
    """The initializers of a quantized weight.

    Args:
        quantized: integers, or float8, of two axes.
        scales: float32, one for each index of an axis, or for each block.
        zeros: zero points, shaped like ``scales``; None where all are zero.
    """

    quantized: ir.Value
    scales: ir.Value
    zeros: ir.Value | None

    @property
    def values(self) -> list[ir.Value]:
        """The inputs of DequantizeLinear."""
        return [self.quantized, self.scales, *([self.zeros] if self.zeros is not None else [])]


def stored_before(graph: Graph, name: str) -> StoredWeight | None:
    """The weight that `store` registered by this name, or None."""
    known = graph.graph.initializers
    if name not in known:
        return None
    return StoredWeight(known[name], known[f"{name}_scale"], known.get(f"{name}_zero_point"))


def store(
    graph: Graph,
    quantized: ir.TensorProtocol,
    scales: ir.TensorProtocol,
    zeros: ir.TensorProtocol | None,
) -> StoredWeight:
    """Register a quantized weight by the name of its ``quantized`` tensor."""
    scales.name = f"{quantized.name}_scale"
    if zeros is not None:
        zeros.name = f"{quantized.name}_zero_point"
    return StoredWeight(
        initializer(graph, quantized),
        initializer(graph, scales),
        None if zeros is None else initializer(graph, zeros),
    )


def initializer(graph: Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """A tensor as an initializer of the same name."""
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.graph.register_initializer(value)
    return value


def dequantized(
    before: Inserter, weight: StoredWeight, axis: int, block: int | None = None
) -> ir.Value:
    """The whole weight in float32: a new DequantizeLinear, with scales along ``axis``."""
    attributes = {"axis": axis, **({"block_size": block} if block else {})}
    wide = before.op("DequantizeLinear", *weight.values, **attributes)
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), weight.quantized.shape
    return wide


def look_up(gather: ir.Node, table: StoredWeight) -> None:
    """Let a Gather look up integer rows and their scales, and dequantize only those rows."""
    before, ids, old = Inserter(gather), gather.inputs[1], gather.outputs[0]
    rows = before.op("Gather", table.quantized, ids, axis=0)
    scales = before.op("Gather", table.scales, ids, axis=0)
    wide = before.op("Cast", rows, to=ir.DataType.FLOAT)
    wide = before.op("Mul", wide, before.op("Unsqueeze", scales, before.integers(-1)))
    name, wide.shape = old.name, old.shape
    ir.convenience.replace_all_uses_with(old, wide, replace_graph_outputs=True)
    assert gather.graph is not None
    gather.graph.remove(gather, safe=True)
    wide.name = name
