"""EmulateBfloat16: a bf16 Graph runs in onnxruntime, and rounds where bf16 would."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.errors import GraphError
from omnigraph.graph import MODULE_KEY, count_ops
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.testing import graph_with_weights, store_weights


def graph_of(body: str, **weights: np.ndarray) -> ir.Model:
    """A float32 Graph of x [n, 16] to y [n, 16], its weights [16, 16]."""
    parts = ", ".join(["float[n, 16] x", *(f"float[16, 16] {name}" for name in weights)])
    header = '<ir_version: 10, opset_import: ["" : 24]>'
    graph = ir.from_onnx_text(f"{header} g ({parts}) => (float[n, 16] y) {{{body}}}")
    store_weights(graph, weights)
    for node in graph.graph:
        node.metadata_props[MODULE_KEY] = "model"
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return graph


def bfloat16(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float32)


WEIGHTS = {
    name: np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
    for seed, name in enumerate(("v", "w"))
}
FEEDS = {"x": np.random.default_rng(7).normal(size=(3, 16)).astype(np.float32)}


def test_results_are_rounded_as_bfloat16_would() -> None:
    graph = graph_of("a = MatMul(x, v) y = MatMul(a, w)", **WEIGHTS)
    ConvertPrecision("bf16")(graph)
    with pytest.raises(GraphError):
        GraphRunner(graph)
    assert EmulateBfloat16()(graph).modified
    found = GraphRunner(graph).run(FEEDS)["y"]
    inner = bfloat16(bfloat16(FEEDS["x"]) @ bfloat16(WEIGHTS["v"]))
    np.testing.assert_array_equal(found, bfloat16(inner @ bfloat16(WEIGHTS["w"])))


def test_legal_complete_at_once_and_weights_stay_stored() -> None:
    graph = graph_of("a = MatMul(x, v) b = Gelu(a) y = Add(b, a)", **WEIGHTS)
    ConvertPrecision("bf16")(graph)
    EmulateBfloat16()(graph)
    assert not EmulateBfloat16()(graph).modified
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert graph.graph.initializers["v"].dtype == ir.DataType.BFLOAT16
    arithmetic = [n for n in graph.graph if n.op_type != "Cast"]
    assert all(v.dtype == ir.DataType.FLOAT for n in arithmetic for v in (*n.inputs, *n.outputs))


def test_moves_round_nothing() -> None:
    graph = graph_of("a = MatMul(x, v) b = Identity(a) y = MatMul(b, w)", **WEIGHTS)
    ConvertPrecision("bf16")(graph)
    before = count_ops(graph)["Cast"]
    EmulateBfloat16()(graph)
    # x, v, w and the first product are widened, and the two products rounded.
    assert count_ops(graph)["Cast"] == before + 6


def test_within_the_tolerance_of_bfloat16() -> None:
    body = "a = MatMul(x, v) b = Gelu(a) c = Softmax(b) y = MatMul(c, w)"
    reference = GraphRunner(graph_of(body, **WEIGHTS)).run(FEEDS)
    graph = graph_of(body, **WEIGHTS)
    ConvertPrecision("bf16")(graph)
    EmulateBfloat16()(graph)
    found = deviations(GraphRunner(graph).run(FEEDS), reference)["y"]
    assert found.within(Tolerance.for_precision("bf16", depth=5, contraction=16))
    assert not found.within(Tolerance.for_precision("fp16", depth=5, contraction=16))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_types_stay(precision: str) -> None:
    graph = graph_of("a = MatMul(x, v) y = MatMul(a, w)", **WEIGHTS)
    if precision == "fp16":
        ConvertPrecision("fp16")(graph)
    assert not EmulateBfloat16()(graph).modified


@pytest.mark.parametrize("block", [0, 8])
def test_integers_are_widened_and_rounded(block: int) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (16, 4)).astype(np.int8)
    steps = np.random.default_rng(1).uniform(0.01, 0.02, (2, 4) if block else 4)
    steps = bfloat16(steps.astype(np.float32))
    axis, rows = (0, "2,") if block else (1, "")
    graph = graph_with_weights(
        f"""g (float[B,16] x, int8[16,4] codes, float[{rows}4] steps, float step, int8 zero)
            => (float[B,4] y) {{
            q = QuantizeLinear(x, step, zero)
            d = DequantizeLinear(q, step, zero)
            w = DequantizeLinear<axis = {axis}, block_size = {block}>(codes, steps)
            y = MatMul(d, w)
        }}""",
        codes=codes,
        steps=steps,
        step=np.array(0.5, np.float32),
        zero=np.array(0, np.int8),
    )
    ConvertPrecision("bf16")(graph)
    EmulateBfloat16()(graph)
    found = GraphRunner(graph).run({"x": np.eye(16, dtype=np.float32)})["y"]
    wide = codes.astype(np.float32) * (np.repeat(steps, 8, 0) if block else steps)
    np.testing.assert_array_equal(found, bfloat16(wide))
