"""Quantized Graphs that TensorRT refuses, or would take for something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tensorrt_programs import as_program, lower

from omnigraph.errors import UnsupportedError
from omnigraph.lowering.tensorrt.build import build_engine, rtx_flavour
from omnigraph.lowering.tensorrt.support import refusal
from omnigraph.program import Dim
from omnigraph.testing import graph_from_text, graph_with_weights

N = "float[n,8]"


def int8(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"({N} x, float s) => (int8[n,8] y) {{ y = QuantizeLinear<output_dtype = 3>(x, s) }}", ""),
        (
            f"({N} x, float s) => (float8e4m3fn[n,8] y)"
            "{ y = QuantizeLinear<output_dtype = 17>(x, s) }",
            "",
        ),
        (
            f"({N} x, float s) => (uint8[n,8] y) {{ y = QuantizeLinear(x, s) }}",
            "does not quantize to uint8",
        ),
        (
            f"({N} x, float s) => (float8e5m2[n,8] y)"
            "{ y = QuantizeLinear<output_dtype = 19>(x, s) }",
            "does not compute in float8e5m2",
        ),
        (
            f"({N} x, float s) => (float8e4m3fn[n,8] y)"
            "{ y = QuantizeLinear<output_dtype = 17, saturate = 0>(x, s) }",
            "saturates",
        ),
        (
            f"({N} x, float s, int8 z) => (int8[n,8] y) {{ y = QuantizeLinear(x, s, z) }}",
            "zero points are 0",
        ),
        (
            f"({N} x) => (int8[n,8] y) <float s = {{0.5}}, int8 z = {{3}}>"
            "{ y = QuantizeLinear(x, s, z) }",
            "zero points are 0",
        ),
        (
            f"({N} x) => (int8[n,8] y) <float s = {{0.5}}, int8 z = {{0}}>"
            "{ y = QuantizeLinear(x, s, z) }",
            "",
        ),
        (
            f"({N} x) => (int8[n,8] y) <float s = {{-0.5}}>"
            "{ y = QuantizeLinear<output_dtype = 3>(x, s) }",
            "above 0",
        ),
        (
            f"({N} x) => (uint8[n,8] y, float s, uint8 z){{ y, s, z = DynamicQuantizeLinear(x) }}",
            "no such op",
        ),
        ("(int8[n,8] x, float s) => (float[n,8] y) { y = DequantizeLinear(x, s) }", ""),
        ("(int32[n,8] x, float s) => (float[n,8] y) { y = DequantizeLinear(x, s) }", "int32"),
        ("(uint4[n,8] x, float s) => (float[n,8] y) { y = DequantizeLinear(x, s) }", "uint4"),
        ("(int4[3,7] x, float s) => (float[3,7] y) { y = DequantizeLinear(x, s) }", "even number"),
        (
            "(int4[4,8] x, float s) => (float16[4,8] y)"
            "{ y = DequantizeLinear<output_dtype = 10>(x, s) }",
            "to the type of their scales only",
        ),
        (
            "(int8[12,8] x, float[2,8] s) => (float[12,8] y)"
            "{ y = DequantizeLinear<axis = 0, block_size = 8>(x, s) }",
            "8 does not divide 12",
        ),
        (
            "(int8[4,8] x, float[1,8] s) => (float[4,8] y)"
            "{ y = DequantizeLinear<axis = 0, block_size = 8>(x, s) }",
            "",
        ),
        (
            "(int8[n,8] x, float[m,8] s) => (float[n,8] y)"
            "{ y = DequantizeLinear<axis = 0, block_size = 8>(x, s) }",
            "known size",
        ),
        (
            "(int8[4,8] x, float[4,8] s) => (float[4,8] y)"
            "{ y = DequantizeLinear<axis = 0, block_size = 1>(x, s) }",
            "blocks of 2 or more",
        ),
        ("(int8[n,8] x) => (int8[8,n] y) { y = Transpose(x) }", ""),
        ("(int8[n,8] x) => (int8[n,8] y) { y = Add(x, x) }", "does not compute in int8"),
        ("(float8e4m3fn[n,8] x) => (float[n,8] y) { y = Cast<to = 1>(x) }", "in float8e4m3fn"),
        (
            "(int64[n] i) => (int8[n] y) <int8[3] w = {1, 2, 3}> { y = Gather(w, i) }",
            "a constant of int8 in a DequantizeLinear only",
        ),
    ],
)
def test_reason(text: str, reason: str) -> None:
    graph = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["" : 24]> g {text}')
    found = refusal(graph.graph[0])
    assert found is None if not reason else found is not None and reason in found, found


@pytest.mark.parametrize(
    ("weights", "scales", "attributes", "half", "reason"),
    [
        ("int8", "float[8]", "<axis = 1>", "float", None),
        ("int8", "float16[8]", "<axis = 1>", "float16", "fp16 overflows"),
        ("int8", "float16", "", "float16", None),
        ("float8e4m3fn", "float[8]", "<axis = 1>", "float", "int8 and float8e4m3fn"),
        ("int4", "float[2,8]", "<axis = 0, block_size = 4>", "float", "int4 and int8"),
        ("int8", "float[2,8]", "<axis = 0, block_size = 4>", "float", "with blocks"),
    ],
)
def test_products_that_it_does_not_have(
    weights: str, scales: str, attributes: str, half: str, reason: str | None
) -> None:
    graph = graph_from_text(
        f"""g ({half}[n,8] x, {half} a, {weights}[8,8] w, {scales} s) => ({half}[n,8] y) {{
            q = QuantizeLinear<output_dtype = 3>(x, a)
            d = DequantizeLinear(q, a)
            v = DequantizeLinear{attributes}(w, s)
            y = MatMul(d, v)
        }}"""
    )
    found = refusal(graph.graph[-1])
    if reason is None:
        assert found is None
    else:
        names = sorted(reason.split(" and ")) if " and " in reason else [reason]
        assert found is not None and all(name in found for name in names), found


def test_refusal_names_the_layer() -> None:
    graph = graph_with_weights(
        "g (float[B,T,128] x, int8[128,1] w, float s, int8 z) => (float[B,T,1] y)"
        "{ v = DequantizeLinear(w, s, z) y = MatMul(x, v) }",
        w=int8(128, 1),
        s=np.float32(0.1),
        z=np.int8(3),
    )
    with pytest.raises(UnsupportedError, match="of module 'model': TensorRT quantizes symmetric"):
        lower(graph, "int8", "forward", B=Dim(1, 2), T=Dim(1, 2))


BLOCKS = """g (float16[B,200] x) => (float16[B,64] y) {{
    v = DequantizeLinear<axis = 0, block_size = {0}>(w, s)
    y = MatMul(x, v)
}}"""
UNSIGNED = """g (float[B,200] x) => (float[B,200] y) {{
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}}"""


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        (
            BLOCKS,
            (64, {"w": int8(200, 64), "s": np.ones((4, 64), np.float16)}),
            (50, {"w": None, "s": None}),
        ),
        (
            UNSIGNED,
            ("uint8", {"s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)}),
            ("int8", {"s": None, "z": np.array(0, np.int8)}),
        ),
    ],
    ids=["blocks of 64 as of 50", "uint8 as int8"],
)
def test_what_the_compiler_takes_for_something_else(text, one, other, tmp_path: Path) -> None:
    """Two Graphs of other numbers give one engine: the reason that the first is refused."""
    flavour, engines = rtx_flavour(), []
    assert flavour is not None
    for position, (word, arrays) in enumerate((one, other)):
        given = {k: one[1][k] if v is None else v for k, v in arrays.items()}
        types = {k: ir.tensor(v) for k, v in given.items()}
        declared = "".join(
            f", {t.dtype.name.lower()}[{','.join(map(str, t.shape))}] {k}".replace("[]", "")
            for k, t in types.items()
        )
        graph = graph_with_weights(text.format(word).replace("] x)", f"] x{declared})"), **given)
        refused = [refusal(node) for node in graph.graph]
        assert any(refused) == (position == 0), refused
        program, folder = as_program(graph, "forward", B=Dim(1, 4)), tmp_path / str(position)
        folder.mkdir()
        ir.save(graph, folder / "model.onnx")
        engine = folder / "model.engine"
        build_engine(flavour, program, folder / "model.onnx", ("sm89",), engine)
        engines.append(engine.read_bytes())
    assert engines[0] == engines[1]
