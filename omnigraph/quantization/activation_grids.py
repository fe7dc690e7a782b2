"""Ranges of quantized activations: those that calibration saw, and the same in each stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.matching import constant, made_by, nodes_of, through

#: A range, both ends included: what a quantizer of activations can represent.
Range = tuple[float, float]
#: Ranges of quantizers: for the weights, by their names, that each activation is multiplied with.
Ranges = Mapping[tuple[str, ...], Range]
#: Relative to the larger end; half types store scales so.
_NEAR = 1e-3


def activation_ranges(graph: Graph) -> Ranges:
    """The range of each quantizer of activations in a Graph."""
    return {tuple(sorted(_weights_of(node))): span for node, span, _ in _quantizers(graph)}


def _quantizers(graph: Graph) -> Iterator[tuple[ir.Node, Range, float]]:
    """Each quantizer of an activation with a constant scale: its range, and its step."""
    for node in nodes_of(graph, "QuantizeLinear"):
        value = node.inputs[0]
        scale = constant(node.inputs[1])
        if value is None or value.const_value is not None or scale is None or scale.size != 1:
            continue
        dtype = node.outputs[0].dtype
        zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if dtype is None or dtype == ir.DataType.FLOAT8E4M3FN:
            low, high, offset = -448.0, 448.0, 0.0
        else:
            low, high = float(dtype.min), float(dtype.max)
            offset = float(zero.reshape(-1)[0]) if zero is not None else 0.0
        step = float(scale.reshape(-1)[0])
        yield node, (step * (low - offset), step * (high - offset)), step


def count_roundings(graph: Graph) -> int:
    """How many activations a Graph rounds: to integers, to float8, or to a half type."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    casts = (
        node
        for node in nodes_of(graph, "Cast")
        if node.attributes.get_int("to", 0) in halves
        and node.inputs[0] is not None
        and node.inputs[0].dtype == ir.DataType.FLOAT
        and ir.convenience.get_const_tensor(node.inputs[0]) is None
    )
    quantizers = nodes_of(graph, "QuantizeLinear", "DynamicQuantizeLinear")
    return sum(1 for _ in casts) + sum(1 for _ in quantizers)


def check_ranges(graph: Graph, statistics: Statistics) -> None:
    """Refuse a quantizer whose range is not the calibrated one of the layers that it serves.

    It covers the range, to within a step, since the zero point is a whole number; and it is no
    wider than a symmetric one of 255 steps.

    Raises:
        ContractError: naming the activation and both ranges.
    """
    for node, (low, high), step in _quantizers(graph):
        for weight in _weights_of(node):
            seen = statistics.observations.get(weight)
            if seen is None:
                continue
            least, most = min(seen.low, 0.0), max(seen.high, 0.0)
            if most == least:
                continue
            widest = 2 * max(-least, most)
            covered = low <= least + 0.51 * step and high >= most - 0.51 * step
            float8 = node.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
            if not covered or (high - low > 1.02 * widest and not float8):
                value = node.inputs[0]
                raise ContractError(
                    f"Activation {value.name if value else ''!r} is not quantized to the range "
                    "that calibration saw",
                    expected=f"{least:.3e} to {most:.3e}",
                    found=f"{low:.3e} to {high:.3e}",
                    hint="its scale or its zero point is off, or another activation's",
                )


def _weights_of(node: ir.Node) -> Iterator[str]:
    """The names, in float, of the weights that a quantized activation is multiplied with."""
    for wide in (user for user, _ in node.outputs[0].uses()):
        for product in (user for out in wide.outputs for user, _ in out.uses()):
            if product.op_type in ("MatMul", "Gemm") and len(product.inputs) > 1:
                stored = made_by(
                    through(product.inputs[1], "Transpose", "Cast"), "DequantizeLinear"
                )
                weight = through(stored.inputs[0], "Transpose") if stored is not None else None
                if weight is not None and weight.name is not None:
                    yield weight.name.rpartition("_")[0]


def check_same_ranges(found: Ranges, expected: Ranges, stage: str) -> None:
    """Refuse quantizers of activations that are not those of the stage before.

    Raises:
        ContractError: naming the weights that the activation is multiplied with, and the ranges.
    """
    for one, others in ((found, expected), (expected, found)):
        for weights, span in one.items():
            known = [others[weights]] if weights in others else [*others.values()]
            if not any(_alike(span, other) for other in known):
                raise ContractError(
                    f"The activation of {', '.join(weights) or 'an op'} is quantized to another "
                    f"range after {stage}",
                    expected=_text(expected.get(weights)),
                    found=_text(found.get(weights)),
                    hint="a scale or a zero point was changed, or a quantizer was moved",
                )


def _text(span: Range | None) -> str:
    return "none" if span is None else f"{span[0]:.3e} to {span[1]:.3e}"


def _alike(one: Range, other: Range) -> bool:
    size = max(abs(end) for end in (*one, *other))
    return all(abs(a - b) <= _NEAR * size for a, b in zip(one, other, strict=True))
