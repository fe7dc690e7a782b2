"""The precision of each linear layer and each embedding: its types, and its bits on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.linear_layers import layer_of
from omnigraph.passes.matching import made_by, nodes_of, through
from omnigraph.precision import FLOAT_TYPES, PRECISIONS


@dataclass(frozen=True)
class LayerPrecision:
    """The precision of one linear layer or embedding in a Graph with standard ops.

    Args:
        layer: the module path.
        op: MatMul, Gemm or Gather.
        weights: the type that its weight is stored in.
        block: how many terms share a scale; None where all do.
        activations: the type in which its activations are multiplied; "dynamic" before it where
            their range is taken at run time.
        bits: of one element of the weight on disk, scales and zero points included.
    """

    layer: str
    op: str
    weights: str
    activations: str
    bits: float
    block: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether its weight is stored in integers or float8."""
        found = PRECISIONS.get(self.weights)
        return found is None or found.quantizes

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready fields."""
        fields: dict[str, Any] = {
            "layer": self.layer,
            "op": self.op,
            "weights": self.weights,
            "activations": self.activations,
            "bits": round(self.bits, 3),
        }
        if self.block:
            fields["block"] = self.block
        return fields


def layer_precisions(graph: Graph) -> list[LayerPrecision]:
    """Every linear layer and every embedding, in the Graph's order."""
    rows = (_row(node) for node in nodes_of(graph, "MatMul", "Gemm", "Gather"))
    return [row for row in rows if row is not None]


def with_stored_choices(plan: Mapping[str, Any], rows: Iterable[LayerPrecision]) -> dict[str, Any]:
    """The plan of a budget, with each choice called what its layers are stored in.

    The tables of embeddings, and logits that share them, have eight bits in every scheme: what was
    chosen as "int4-weights" is "int8-weights" there.

    Args:
        plan: JSON-ready fields, with a ``choice`` for the ``layers`` of each row.
        rows: of the ledger, of all programs.
    """
    types: dict[str, set[str]] = {}
    for row in rows:
        types.setdefault(row.layer, set()).add(row.weights)

    def stored(choice: str, layers: Iterable[str]) -> str:
        found = {name for layer in layers for name in types.get(layer, ())}
        return "int8-weights" if choice == "int4-weights" and found == {"int8"} else choice

    listed = [{**row, "choice": stored(row["choice"], row["layers"])} for row in plan["layers"]]
    return {**plan, "layers": listed}


def _row(node: ir.Node) -> LayerPrecision | None:
    source = node.inputs[0 if node.op_type == "Gather" else 1]
    weight = through(source, "Transpose", "Cast", "Identity")
    wide = made_by(weight, "DequantizeLinear")
    stored = [through(v, "Transpose") for v in wide.inputs] if wide is not None else [weight]
    if node.op_type == "Gather":
        stored += _scales_of_rows(node)
    if stored[0] is None or not is_weight(stored[0]) or len(stored[0].shape or ()) != 2:
        return None
    tensors = [value.const_value for value in stored if value is not None]
    held = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert tensors[0] is not None
    dtype = tensors[0].dtype
    if node.op_type == "Gather" and not (dtype.is_floating_point() or len(stored) > 1):
        return None  # a table of integers is no embedding
    return LayerPrecision(
        layer_of(node),
        node.op_type,
        _name(dtype),
        "" if node.op_type == "Gather" else _activations(node.inputs[0]),
        8 * held / max(1, tensors[0].size),
        (wide.attributes.get_int("block_size", 0) or None) if wide is not None else None,
    )


def _scales_of_rows(node: ir.Node) -> list[ir.Value]:
    """The scales of the rows that a Gather looks up in a table of integers."""
    for user, _ in node.outputs[0].uses():
        for linear, _ in user.outputs[0].uses():
            for factor in linear.inputs if linear.op_type == "Mul" else ():
                scales = made_by(through(factor, "Unsqueeze"), "Gather")
                if scales is not None and scales is not node and scales.inputs[0] is not None:
                    return [scales.inputs[0]]
    return []


def _activations(value: ir.Value | None) -> str:
    wide = made_by(value, "DequantizeLinear")
    if wide is None or (quantized := wide.inputs[0]) is None or quantized.dtype is None:
        return _name(value.dtype) if value is not None and value.dtype is not None else "fp32"
    dynamic = "dynamic " if made_by(quantized, "DynamicQuantizeLinear") is not None else ""
    return dynamic + _name(quantized.dtype)


def _name(dtype: ir.DataType) -> str:
    return FLOAT_TYPES.get(dtype.name, dtype.name.lower())
