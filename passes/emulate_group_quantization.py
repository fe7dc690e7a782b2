"""Quantize activations as a runtime does by itself beside integer weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import made_by, nodes_of, through

_LARGEST = 127.0
#: In memory: a value that this pass has rounded.
_MARK = "omnigraph.rounded_in_groups"


@dataclass(frozen=True)
class EmulateGroupQuantization(Pass):
    """Round the activations of layers with integer weights to 8 bits, a scale for each group.

    Before::

        y = MatMul(x, DequantizeLinear(weight))

    After, where ``s`` is a 127th of the largest magnitude of each group of terms of x::

        y = MatMul(Round(x / s) · s, DequantizeLinear(weight))

    onnxruntime does so in MatMulNBits (accuracy level 4), and OpenVINO where
    ``DYNAMIC_QUANTIZATION_GROUP_SIZE`` is set and the CPU multiplies integers. It says how much of
    a difference between an artifact and its Graph that explains.

    Args:
        group: terms that share a scale, of weights whose scales are not in groups themselves.

    Leaves alone: layers whose activations the Graph itself quantizes, and weights in float.
    """

    group: int = 128

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        rounded: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in list(nodes_of(graph, "MatMul", "Gemm")):
            value, stored = node.inputs[0], _stored(node)
            if value is None or stored is None or _is_rounded(value):
                continue
            terms, block = stored
            key = value, min(block or self.group, terms)
            if key not in rounded:
                rounded[key] = _in_groups(node, value, terms, key[1])
            node.replace_input_with(0, rounded[key])
        return bool(rounded)


def _stored(node: ir.Node) -> tuple[int, int] | None:
    """The terms of a product with an integer weight, and those of a scale; None for any other."""
    factor = node.inputs[1]
    stored = made_by(through(factor, "Transpose", "Cast"), "DequantizeLinear")
    weight = through(stored.inputs[0], "Transpose") if stored is not None else None
    if factor is None or stored is None or weight is None or not is_weight(weight):
        return None
    if factor.shape is None or len(factor.shape) != 2:
        return None
    size = factor.shape[1 if node.attributes.get_int("transB", 0) else 0]
    block = stored.attributes.get_int("block_size", 0)
    return (size, block) if isinstance(size, int) else None


def _is_rounded(value: ir.Value) -> bool:
    return _MARK in value.meta or made_by(through(value, "Cast"), "DequantizeLinear") is not None


def _in_groups(node: ir.Node, value: ir.Value, terms: int, group: int) -> ir.Value:
    """An activation [..., K], rounded by groups of its last axis; the last group may be short."""
    before, more = Inserter(node), -terms % group
    wide = value
    if more:
        wide = before.op("Pad", value, before.integers(0, more), None, before.integers(-1))
    groups = before.op("Reshape", wide, before.integers(-1, group))
    largest = before.op("ReduceMax", before.op("Abs", groups), before.integers(-1), keepdims=1)
    step = before.op("Div", largest, before.number(_LARGEST, value))
    step = before.op("Max", step, before.number(float(np.finfo(np.float32).tiny), value))
    result = before.op("Mul", before.op("Round", before.op("Div", groups, step)), step)
    if more:
        rows = before.op("Reshape", result, before.integers(-1, terms + more))
        ends = (before.integers(0), before.integers(terms), before.integers(-1))
        result = before.op("Slice", rows, *ends)
    result = before.op("Reshape", result, before.op("Shape", value))
    result.type, result.shape = value.type, value.shape
    result.meta[_MARK] = True
    return result
