"""Ranges of quantized activations: those that calibration saw, and the same in each stage."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.lowering import find_target
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.quantization.activation_grids import (
    activation_ranges,
    check_ranges,
    check_same_ranges,
)
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)


def quantized(target: str, precision: str, low: float, high: float) -> tuple[Graph, Statistics]:
    weight = RNG.standard_normal((32, 16)).astype(np.float32)
    text = "g (float[N,32] x, float[32,16] w) => (float[N,16] y) { y = MatMul(x, w) }"
    graph = graph_with_weights(text, w=weight)
    seen = Observation.of(np.linspace(low, high, 320).reshape(10, 32))
    statistics = Statistics({"w": seen}, "min-max", "a test", 1)
    scheme = find_target(target).schemes[precision]
    run_passes(graph, [InsertQdq(scheme=scheme, facts=QuantizationFacts(statistics))])
    return graph, statistics


def change(graph: Graph, name: str, factor: float, offset: int = 0) -> None:
    value = graph.graph.initializers[name]
    assert value.const_value is not None and value.dtype is not None
    array = value.const_value.numpy()
    moved = (array.astype(np.float64) * factor + offset).astype(array.dtype)
    value.const_value = ir.tensor(moved, dtype=value.dtype, name=name)


SPANS = [(-3.0, 2.0), (0.0, 5.0), (-1e-3, 4e-3), (-2.0, -1.0), (1.0, 2.0)]


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("how", [("onnx", "int8"), ("tensorrt", "int8"), ("tensorrt", "fp8")])
def test_ranges_are_those_of_calibration(how, span):
    graph, statistics = quantized(*how, *span)
    check_ranges(graph, statistics)
    ((low, high),) = activation_ranges(graph).values()
    assert low <= span[0] + 1e-2 * (span[1] - span[0]) and high >= span[1] * 0.99


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("factor", [0.5, 0.9, 2.5])
def test_a_wrong_scale_is_found(span, factor):
    graph, statistics = quantized("onnx", "int8", *span)
    change(graph, "x_scale", factor)
    with pytest.raises(ContractError, match="'x' is not quantized to the range"):
        check_ranges(graph, statistics)


@pytest.mark.parametrize("offset", [3, -3, 40])
def test_a_wrong_zero_point_is_found(offset):
    graph, statistics = quantized("onnx", "int8", -3.0, 2.0)
    change(graph, "x_zero_point", 1, offset)
    with pytest.raises(ContractError, match="'x' is not quantized to the range"):
        check_ranges(graph, statistics)


def test_another_range_in_a_later_stage_is_found():
    graph, _ = quantized("onnx", "int8", -3.0, 2.0)
    before = activation_ranges(graph)
    check_same_ranges(activation_ranges(graph), before, "a test")
    change(graph, "x_scale", 1.02)
    with pytest.raises(ContractError, match="of w is quantized to another range"):
        check_same_ranges(activation_ranges(graph), before, "a test")
