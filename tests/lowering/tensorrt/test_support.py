"""What TensorRT refuses: before it is asked, in its parser, and in its compiler."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from tensorrt_programs import TARGET, emit, graph_of, lower

from omnigraph.errors import CompileError, UnsupportedError
from omnigraph.lowering import Lowered
from omnigraph.lowering.tensorrt.build import TensorRtError
from omnigraph.lowering.tensorrt.support import _TAKEN, refusal
from omnigraph.program import Dim, TensorSpec

F, H, T = "float[n, 4]", "float16[b, 2, t, 16]", "float16[b, 2, t, 4]"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"({F} x) => ({F} y) {{ y = Relu(x) }}", None),
        (f"({F} x) => (int64[2, k] y) {{ y = NonZero(x) }}", "no such op"),
        ("(double[n] x) => (double[n] y) { y = Relu(x) }", "does not compute in double"),
        ("(uint8[n] x) => (uint8[n] y) { y = Add(x, x) }", "does not compute in uint8"),
        ("(uint8[n] x) => (float[n] y) { y = Cast<to = 1>(x) }", None),
        ("(bfloat16[n] x) => (bfloat16[n] y) { y = Mish(x) }", "no Mish in bfloat16"),
        (f"({F} x) => ({F} y) {{ y = Mod(x, x) }}", "fmod=1 only"),
        (f"({F} x) => ({F} y) {{ y = Mod<fmod = 1>(x, x) }}", None),
        ("(bool[n, 4] x) => (bool[1, 1] y) { y = ReduceMax(x) }", "does not reduce booleans"),
        (f"({F} x, int64[k] a) => (float[n] y) {{ y = Squeeze(x, a) }}", "constant axes only"),
        (
            f"({F} x, int64[n, 1] i, {F} u) => ({F} y)"
            '{ y = ScatterND<reduction = "add">(x, i, u) }',
            "scatters without a reduction, not by 'add'",
        ),
        (
            f"({F} x, float[4] s) => ({F} y, float[n, 1] m) {{ y, m = LayerNormalization(x, s) }}",
            "gives the first output only, and 'm' is used",
        ),
        (f"({F} x, float[4] s) => ({F} y) {{ y, m = LayerNormalization(x, s) }}", None),
        (f"({H} q, {H} k) => ({H} y) {{ y = Attention(q, k, k) }}", None),
        (
            f"({H} q) => ({H} y) {{ y = Attention(q, q, q) }}",
            "queries and keys that are one tensor",
        ),
        (f"({T} q, {T} k) => ({T} y) {{ y = Attention(q, k, k) }}", "heads of 4, outside 9 to 256"),
        (
            f"({H} q, {H} k) => ({H} y) {{ y = Attention<softcap = 5.0>(q, k, k) }}",
            "no attention kernel for a softcap",
        ),
        (
            f"({H} q, {H} k, bool[t, t] m) => ({H} y)"
            "{ y = Attention<is_causal = 1>(q, k, k, m) }",
            "a mask or is_causal, not both",
        ),
        (f"({H} q, {H} k) => ({H} y) {{ y = Attention(q, k, k, , k, k) }}", "no past"),
        (
            f"({H} q, {H} k) => ({H} y) {{ y = Attention(q, k, k) }}".replace("float16", "float"),
            "fp16 and bf16 only",
        ),
    ],
)
def test_reason(text: str, reason: str | None) -> None:
    graph = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 24]> g {text}')
    found = refusal(graph.graph[0])
    assert found is None if reason is None else found is not None and reason in found, found


def test_refusal_names_node_and_module() -> None:
    graph = graph_of("g (float[n, 4] x) => (int64[2, k] y) { y = NonZero(x) }")
    with pytest.raises(
        UnsupportedError, match=r"NonZero 'NonZero_0' of module 'layer': TensorRT has"
    ):
        TARGET.check_nodes("decode", graph, "fp16")


def test_every_op_taken_is_one_of_the_vendors_parser() -> None:
    import tensorrt_rtx

    log = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    network = tensorrt_rtx.Builder(log).create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, log)
    assert [op for op in sorted(_TAKEN) if not parser.supports_operator(op)] == []


def test_refusal_of_the_parser_names_node_and_module(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[1, 1, n, 4] x) => (float[1, 1, m, 8] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}>"
        '{ y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, , s) }'
    )
    with pytest.raises(CompileError, match="'Resize_0' of module 'layer'") as caught:
        emit(lower(graph, n=Dim(1, 4)), tmp_path)
    assert isinstance(caught.value.__cause__, TensorRtError)


def test_refusal_of_the_compiler_says_why(tmp_path: Path) -> None:
    shape = "[b, t, 8]"
    graph = graph_of(
        f"g (float16{shape} q, float16{shape} k) => (float16{shape} y)"
        "{ y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, k) }"
    )
    inputs = tuple(TensorSpec(name, "float16", ("b", "t", 8)) for name in "qk")
    program = Lowered("forward", graph, inputs, (), {"b": Dim(1, 2), "t": Dim(1, 4)})
    with pytest.raises(CompileError, match="not supported by a dedicated kernel") as caught:
        emit(program, tmp_path)
    assert isinstance(caught.value.__cause__, TensorRtError)


def test_crash_of_the_compiler_is_an_error(tmp_path: Path) -> None:
    shape = "[b, 2, t, 16]"
    graph = graph_of(f"g (float16{shape} q) => (float16{shape} y) {{ y = Attention(q, q, q) }}")
    inputs = (TensorSpec("q", "float16", ("b", 2, "t", 16)),)
    program = Lowered("forward", graph, inputs, (), {"b": Dim(1, 2), "t": Dim(1, 4)})
    with pytest.raises(CompileError, match="compiler crashed on program 'forward': found SIGSEGV"):
        emit(program, tmp_path)


def test_input_that_is_a_shape_is_refused(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[n] x, int64 m) => (float[k] y) <int64 z = {0}, int64 o = {1}>"
        "{ r = Range(z, m, o) y = Cast<to = 1>(r) }"
    )
    with pytest.raises(UnsupportedError, match="Input 'm' of program 'decode' is read as a shape"):
        emit(lower(graph, n=Dim(1, 4)), tmp_path)
