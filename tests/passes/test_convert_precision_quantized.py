"""ConvertPrecision around quantized values: what becomes a half, and the numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from precision_graphs import HALVES, convert, dtypes

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import count_ops
from omnigraph.testing import graph_with_weights

QUANTIZED = """g (float[B,16] x, float[16] scale, int8[16,8] codes, float[8] steps, float step,
    int8 zero) => (float[B,8] y) {
    normed = RMSNormalization(x, scale)
    q = QuantizeLinear(normed, step, zero)
    d = DequantizeLinear(q, step, zero)
    w = DequantizeLinear<axis = 1>(codes, steps)
    y = MatMul(d, w)
}"""


def quantized(text: str = QUANTIZED, **weights: np.ndarray) -> ir.Model:
    rng = np.random.default_rng(0)
    given = {
        "scale": np.ones(16, np.float32),
        "codes": rng.integers(-127, 128, (16, 8)).astype(np.int8),
        "steps": rng.uniform(0.01, 0.02, 8).astype(np.float32),
        "step": np.array(0.03, np.float32),
        "zero": np.array(0, np.int8),
        **weights,
    }
    asked = {n: a for n, a in given.items() if f" {n}," in text or f" {n})" in text}
    return graph_with_weights(text, **asked)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_norm_is_quantized_as_it_is_and_widened_to_half(precision: str) -> None:
    graph = convert(quantized(), precision)
    found, half = dtypes(graph), HALVES[precision]
    assert [found[name] for name in "dw"] == [half, half]
    assert {found[name] for name in ("normed", "step", "steps")} == {ir.DataType.FLOAT}
    assert count_ops(graph)["Cast"] == 1  # the output's


def test_what_is_half_is_quantized_as_half() -> None:
    text = QUANTIZED.replace("RMSNormalization(x, scale)", "Add(x, scale)")
    graph = convert(quantized(text))
    assert dtypes(graph)["normed"] == ir.DataType.FLOAT16
    assert count_ops(graph)["Cast"] == 2  # the input's and the output's


def test_numbers_of_fp16_around_integers() -> None:
    # The norm and what is quantized are the same in both, so that no integer differs.
    feeds = {"x": np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)}
    reference = GraphRunner(quantized()).run(feeds)
    found = GraphRunner(convert(quantized())).run(feeds)
    # Roundings: of both factors, and of the result.
    assert deviations(found, reference)["y"].within(
        Tolerance.for_precision("fp16", depth=3, contraction=16)
    )


BLOCKS = """g (float[B,16] x, {kind}[16,8] codes, float[{rows}8] steps) => (float[B,8] y) {{
    w = DequantizeLinear<axis = {axis}, block_size = {block}>(codes, steps)
    y = MatMul(x, w)
}}"""


@pytest.mark.parametrize(
    ("kind", "block", "half"),
    [("int8", 0, False), ("int8", 8, True), ("int4", 0, True), ("int4", 8, True)],
)
def test_scales_of_blocks_and_of_four_bits_become_half(kind: str, block: int, half: bool) -> None:
    rows, shape = ("2,", (2, 8)) if block else ("", (8,))
    text = BLOCKS.format(kind=kind, rows=rows, axis=0 if block else 1, block=block)
    codes = np.random.default_rng(0).integers(-8, 8, (16, 8))
    codes = codes.astype(ml_dtypes.int4 if kind == "int4" else np.int8)
    steps = np.full(shape, 0.25, np.float32)
    graph = convert(quantized(text, codes=codes, steps=steps))
    (widened,) = (node for node in graph.graph if node.op_type == "DequantizeLinear")
    expected = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT
    assert (widened.inputs[1].dtype, widened.outputs[0].dtype) == (expected, ir.DataType.FLOAT16)
    assert ("output_dtype" in widened.attributes) is not half
    found = GraphRunner(graph).run({"x": np.eye(16, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(found, codes.astype(np.float32) / 4)


def test_a_scale_too_small_for_half_is_not_zero() -> None:
    text = BLOCKS.format(kind="int8", rows="2,", axis=0, block=8)
    steps = np.full((2, 8), 1e-9, np.float32)
    graph = convert(quantized(text, steps=steps))
    (scales,) = (v for v in graph.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16)
    assert (scales.const_value.numpy() == np.float16(2.0**-24)).all()
