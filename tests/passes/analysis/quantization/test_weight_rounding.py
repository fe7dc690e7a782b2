"""Weights on their grids: as ONNX defines them, with the least error, and with compensation."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from omnigraph.passes.analysis.quantization.weight_rounding import (
    RoundedWeight,
    WeightGrid,
    compensate,
    fit_grid,
    on_grid,
    round_weight,
)

INT8 = WeightGrid(ir.DataType.INT8)
FP8 = WeightGrid(ir.DataType.FLOAT8E4M3FN)
BLOCKED = [
    WeightGrid(dtype, block)
    for dtype in (ir.DataType.INT4, ir.DataType.UINT4)
    for block in (16, 32)
]


def weights(terms: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((terms, channels)).astype(np.float32) * rng.uniform(
        0.1, 3, channels
    ).astype(np.float32)


def dequantized(rounded: RoundedWeight) -> np.ndarray:
    """The weight as ONNX's reference dequantizes it."""
    grid = rounded.grid
    dtype = getattr(TensorProto, grid.dtype.name)
    held = rounded.quantized.astype(grid.dtype.numpy())
    inputs = {"codes": (held, dtype), "scale": (rounded.scales, TensorProto.FLOAT)}
    if rounded.zeros is not None:
        inputs["zero"] = (rounded.zeros.astype(grid.dtype.numpy()), dtype)
    attributes = {"axis": 0, "block_size": grid.block} if grid.block else {"axis": 1}
    node = helper.make_node("DequantizeLinear", list(inputs), ["wide"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, t, a.shape) for n, (a, t) in inputs.items()],
        [helper.make_tensor_value_info("wide", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, {n: a for n, (a, _) in inputs.items()})[0]


@pytest.mark.parametrize("grid", [INT8, FP8, *BLOCKED], ids=str)
def test_what_is_widened_is_what_onnx_defines(grid: WeightGrid):
    rounded = round_weight(weights(64, 7), grid)
    np.testing.assert_array_equal(rounded.dequantized(), dequantized(rounded))


@pytest.mark.parametrize("grid", [INT8, *BLOCKED], ids=str)
def test_values_are_within_their_type_and_rounded_to_the_nearest(grid: WeightGrid):
    array = weights(70, 5)  # the last block is not full
    scales, zeros = fit_grid(array, grid)
    rounded = RoundedWeight(on_grid(array, scales, zeros, grid), scales, zeros, grid)
    low, high = grid.levels
    assert low <= rounded.quantized.min() and rounded.quantized.max() <= high
    step = np.repeat(scales, grid.block, axis=0)[:70] if grid.block else scales
    inside = (rounded.quantized > low) & (rounded.quantized < high)
    wrong = np.abs(rounded.dequantized() - array)
    assert (wrong <= step * 0.5 * (1 + 1e-5))[inside].all()


def test_halves_go_to_the_even_code():
    array = np.array([[0.5], [1.5], [2.5], [-0.5], [127.0]], np.float32)
    assert round_weight(array, INT8).quantized[:, 0].tolist() == [0, 2, 2, 0, 127]


@pytest.mark.parametrize("grid", [INT8, FP8, *BLOCKED], ids=str)
def test_channels_that_are_zero_stay_zero(grid: WeightGrid):
    array = weights(64, 3)
    array[:, 1] = 0
    rounded = round_weight(array, grid)
    assert np.isfinite(rounded.scales).all() and (rounded.scales > 0).all()
    assert not rounded.dequantized()[:, 1].any()


@pytest.mark.parametrize("grid", BLOCKED, ids=str)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_clipping_is_never_worse_than_the_whole_range(grid: WeightGrid, seed: int):
    rng = np.random.default_rng(seed)
    array = rng.standard_t(3, (64, 6)).astype(np.float32)  # with outliers
    low, high = grid.levels
    blocks = array.reshape(-1, grid.block, 6)
    if grid.has_zero_points:
        span = np.maximum(blocks.max(1), 0) - np.minimum(blocks.min(1), 0)
        scales = (span / (high - low)).astype(np.float32)
        zeros = np.clip(np.rint(low - np.minimum(blocks.min(1), 0) / scales), low, high).astype(
            np.uint8
        )
    else:
        most, least = blocks.max(1), blocks.min(1)
        scales = np.where(-least >= most, -least / 8, np.maximum(most / 7, -least / 8))
        scales, zeros = scales.astype(np.float32), None
    whole = RoundedWeight(on_grid(array, scales, zeros, grid), scales, zeros, grid).dequantized()
    found = round_weight(array, grid).dequantized()
    assert np.square(found - array).sum() <= np.square(whole - array).sum() * (1 + 1e-5)


def test_what_is_important_is_rounded_better():
    array = weights(64, 16, seed=3)
    importance = np.ones(64, np.float32)
    importance[::8] = 100.0
    grid = WeightGrid(ir.DataType.INT4, 64)

    def wrong(of: np.ndarray | None) -> float:
        scales, zeros = fit_grid(array, grid, of)
        wide = RoundedWeight(on_grid(array, scales, zeros, grid), scales, zeros, grid).dequantized()
        return float((np.square(wide - array) * importance[:, None]).sum())

    assert wrong(importance) < wrong(None)


# Compensation -------------------------------------------------------------------------------------


def activations(count: int, terms: int, seed: int = 1) -> np.ndarray:
    """Correlated, of very different sizes: what compensation is for."""
    rng = np.random.default_rng(seed)
    mixed = (
        rng.standard_normal((count, terms)) @ rng.standard_normal((terms, terms)) / np.sqrt(terms)
    )
    return (mixed * rng.uniform(0.1, 4, terms)).astype(np.float32)


@pytest.mark.parametrize("grid", [INT8, *BLOCKED], ids=str)
def test_outputs_are_closer_with_compensation(grid: WeightGrid):
    array, seen = weights(96, 24), activations(512, 96)
    moments = (seen.T @ seen).astype(np.float32)
    better = compensate(array, moments, grid)
    plain = round_weight(array, grid)
    other = activations(512, 96)  # of the same kind; the error is measured on what was not seen
    other = other[:, np.arange(96)] + 0.05 * np.random.default_rng(9).standard_normal(other.shape)

    def wrong(rounded: RoundedWeight) -> float:
        return float(np.square(other @ (rounded.dequantized() - array)).mean())

    assert wrong(better) < 0.6 * wrong(plain)
    low, high = grid.levels
    assert low <= better.quantized.min() and better.quantized.max() <= high
    np.testing.assert_array_equal(better.dequantized(), dequantized(better))


def test_without_correlation_compensation_is_rounding_to_the_nearest():
    array = weights(32, 8)
    found = compensate(array, np.eye(32, dtype=np.float32), INT8, damping=0.0)
    np.testing.assert_array_equal(found.quantized, round_weight(array, INT8).quantized)


@pytest.mark.parametrize("grid", [INT8, WeightGrid(ir.DataType.UINT4, 16)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_terms_that_were_never_seen_are_rounded_to_the_nearest(grid: WeightGrid, size: float):
    array, seen = weights(48, 6), size * activations(256, 48)
    seen[:, [7, 20]] = 0
    found = compensate(array, (seen.T @ seen).astype(np.float32), grid)
    assert found.unseen == 2 * 6
    nearest = on_grid(array, found.scales, found.zeros, grid)
    np.testing.assert_array_equal(found.quantized[[7, 20]], nearest[[7, 20]])
    steps = found.scales if grid.block is None else found.scales[[7 // 16, 20 // 16]]
    assert (np.abs(found.dequantized()[[7, 20]] - array[[7, 20]]) < 2 * steps).all()
    plain = round_weight(array, grid)

    def wrong(rounded: RoundedWeight) -> float:
        return float(np.square(seen @ (rounded.dequantized() - array)).mean())

    assert wrong(found) < 0.6 * wrong(plain)


@pytest.mark.parametrize("grid", [INT8, *BLOCKED], ids=str)
def test_a_layer_that_was_never_reached_is_rounded_to_the_nearest(grid: WeightGrid):
    array = weights(64, 6)
    found, plain = (
        compensate(array, np.zeros((64, 64), np.float32), grid),
        round_weight(array, grid),
    )
    np.testing.assert_array_equal(found.dequantized(), plain.dequantized())
    assert found.unseen == array.size


def test_few_samples_are_enough_to_go_on():
    array, seen = weights(64, 6), activations(5, 64)  # the moments are singular
    found = compensate(array, (seen.T @ seen).astype(np.float32), INT8)
    assert np.isfinite(found.dequantized()).all()
