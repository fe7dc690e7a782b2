"""The tensorrt target: engines built here, and what is refused before and by the vendor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.errors import CompileError, UnsupportedError, UsageError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.lowering import Lowered, find_target
from omnigraph.lowering.tensorrt.build import UNBOUNDED_LENGTH, TensorRtError, profile_of
from omnigraph.lowering.tensorrt.support import _TAKEN, refusal
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.program import Dim, TensorSpec

TARGET: Any = find_target("tensorrt")
HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE

#: One decoder layer with a past: masks, positions, a norm, attention, a feed-forward.
LAYER = """
layer (int64[batch, sequence] ids, int64[batch, total] mask,
       float[batch, 2, past, {size}] past_key, float[{width}] scale,
       float[64, {width}] table, float[{width}, {width}] wq, float[{width}, {width}] wk)
    => (float[batch, sequence, {width}] y, float[batch, 2, total, {size}] key)
    <int64[4] split = {{0, 0, 2, {size}}}, int64[3] join = {{0, 0, {width}}}, int64 zero = {{0}},
     int64 one = {{1}}, int64[2] both = {{1, 2}}, int64[1] last = {{1}}>
{{
    x = Gather(table, ids)
    normed = RMSNormalization(x, scale)
    q1 = MatMul(normed, wq)
    q2 = Reshape(q1, split)
    q = Transpose<perm = [0, 2, 1, 3]>(q2)
    k1 = MatMul(normed, wk)
    k2 = Reshape(k1, split)
    k = Transpose<perm = [0, 2, 1, 3]>(k2)
    key = Concat<axis = 2>(past_key, k)
    past1 = Shape<start = 2, end = 3>(past_key)
    past = Squeeze(past1)
    total1 = Shape<start = 1, end = 2>(mask)
    total = Squeeze(total1)
    columns = Range(zero, total, one)
    rows1 = Range(past, total, one)
    rows = Unsqueeze(rows1, last)
    causal = LessOrEqual(columns, rows)
    token1 = Cast<to = 9>(mask)
    token = Unsqueeze(token1, both)
    visible = And(causal, token)
    a = Attention(q, key, key, visible)
    a1 = Transpose<perm = [0, 2, 1, 3]>(a)
    a2 = Reshape(a1, join)
    b = Add(x, a2)
    c = Gelu(b)
    y = Add(b, c)
}}
"""


def graph_of(text: str, seed: int = 0, **sizes: int) -> Graph:
    """A Graph of ONNX text; float inputs without a name among their dimensions become weights."""
    text = text.format(**{"size": SIZE, "width": WIDTH, **sizes}) if sizes or "{{" in text else text
    graph = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 24]> {text.strip()}')
    rng = np.random.default_rng(seed)
    for value in list(graph.graph.inputs):
        if value.dtype == ir.DataType.FLOAT and all(isinstance(d, int) for d in value.shape):
            array = (rng.normal(size=value.shape.numpy()) / np.sqrt(WIDTH)).astype(np.float32)
            graph.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            graph.graph.register_initializer(value)
    ShapeInferencePass()(graph)
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"{node.op_type}_{position}"
        node.metadata_props[MODULE_KEY] = "layer"
    return graph


def lowered(graph: Graph, precision: str = "fp16", name: str = "decode", **dims: Dim) -> Lowered:
    """A Graph as the driver hands it to the target."""
    run_passes(graph, TARGET.pipeline(precision))
    TARGET.check_nodes(name, graph, precision)
    inputs, outputs = (
        tuple(
            TensorSpec(
                value.name,
                value.dtype.numpy().name,
                tuple(
                    "past + sequence" if str(d) == "total" else d if isinstance(d, int) else d.value
                    for d in value.shape
                ),
            )
            for value in values
        )
        for values in (graph.graph.inputs, graph.graph.outputs)
    )
    return Lowered(name, graph, inputs, outputs, dims)


def layer(precision: str = "fp16", name: str = "decode", **sizes: int) -> Lowered:
    dims = {"batch": Dim(1, 4), "sequence": Dim(1, 16), "past": Dim(0, 32)}
    return lowered(graph_of(LAYER, **sizes), precision, name, **dims)


def feeds(batch: int, sequence: int, past: int, size: int = SIZE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.ones((batch, past + sequence), np.int64)
    mask[-1, : past // 2] = 0
    return {
        "ids": rng.integers(0, 64, (batch, sequence)),
        "mask": mask,
        "past_key": rng.normal(size=(batch, HEADS, past, size)).astype(np.float32),
    }


def emit(program: Lowered, directory: Path, precision: str = "fp16", **options: str) -> Any:
    return TARGET.emit([program], directory, precision=precision, options=options)


# What is built -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_engine_and_the_graph_it_came_from(precision: str, tmp_path: Path) -> None:
    emission = emit(layer(precision), tmp_path, precision)
    files = emission.files["decode"]
    assert files["model"] == "decode.engine"
    assert (tmp_path / files["model"]).stat().st_size > 10_000
    details = emission.details["decode"]
    assert details["engine"]["bytes"] == (tmp_path / files["model"]).stat().st_size
    assert details["engine"]["weight_bytes"] > 0
    assert details["attention"] == {"nodes": 1, "kernels": 1}
    assert details["tensors"] == {
        "ids": "int64 [-1, -1]",
        "mask": "int64 [-1, -1]",
        "past_key": f"float [-1, 2, -1, {SIZE}]",
        "y": f"float [-1, -1, {WIDTH}]",
        "key": f"float [-1, 2, -1, {SIZE}]",
    }
    assert details["profile"]["mask"] == {"min": [1, 1], "opt": [1, 33], "max": [4, 48]}
    assert details["profile"]["past_key"]["min"] == [1, 2, 0, SIZE]
    assert emission.requires == {details["flavour"]: f"=={details['version']}"}


@pytest.mark.parametrize(
    ("precision", "size"), [("fp16", SIZE), ("bf16", SIZE), ("fp16", 4), ("bf16", 4)]
)
def test_lowered_graph_has_the_numbers_of_fp32(precision: str, size: int, tmp_path: Path) -> None:
    sizes = {"size": size, "width": HEADS * size}
    original = ir.to_proto(graph_of(LAYER, **sizes)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    reference = onnxruntime.InferenceSession(original, options)
    emission = emit(layer(precision, **sizes), tmp_path, precision)
    path = tmp_path / emission.files["decode"]["lowered"]
    graph = ir.load(path)
    if EmulateBfloat16()(graph).modified:
        ir.external_data.load_to_model(graph)
        path = tmp_path / "emulated.onnx"
        ir.save(graph, path)
    session = onnxruntime.InferenceSession(str(path), options)
    tolerance = Tolerance.for_precision(precision, depth=12, contraction=WIDTH)
    for batch, sequence, past in ((1, 1, 0), (2, 5, 3), (3, 1, 8), (1, 7, 0)):
        given = feeds(batch, sequence, past, size)
        expected = reference.run(["y", "key"], given)
        for found, wanted in zip(session.run(["y", "key"], given), expected, strict=True):
            assert deviation(found, wanted).within(tolerance), (batch, sequence, past)


def test_same_graph_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for name in ("one", "another-one"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("OMNIGRAPH_TEST", name * 100)
        emit(layer(), tmp_path / name, compute="sm89")
        built.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    differing = {name for name in built[0] if built[0][name] != built[1][name]}
    # A container may forbid fixed addresses, and the compiler's order of symbols follows them.
    assert not differing or (differing == {"decode.engine"} and not fixed_addresses_allowed())


def fixed_addresses_allowed() -> bool:
    ask = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x0040000) == -1)"
    return subprocess.run([sys.executable, "-c", ask], check=False).returncode == 0


def test_programs_share_their_weights(tmp_path: Path) -> None:
    programs = [layer(name="decode"), layer(name="forward")]
    emission = TARGET.emit(programs, tmp_path, precision="fp16", options={})
    assert {files["weights"] for files in emission.files.values()} == {"weights.bin"}
    suffixes = sorted(path.suffix for path in tmp_path.iterdir())
    assert suffixes == [".bin", ".engine", ".engine", ".onnx", ".onnx"]


def test_compute_asked_for_is_what_is_built(tmp_path: Path) -> None:
    emission = emit(layer(), tmp_path, compute="SM89, sm120")
    assert emission.details["decode"]["compute"] == ["sm89", "sm120"]
    assert b"accelerators={sm89 sm120 }" in (tmp_path / "decode.engine").read_bytes()


# What attention needs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kernels"),
    [
        ("a = Attention(q, k, k)", 1),
        ("a = Attention<is_causal = 1>(q, k, k)", 1),
        ("a = Attention<is_causal = 1>(q, k, k, mask)", 1),
        ("a = Attention<softcap = 5.0>(q, k, k, mask)", 0),
        ("a = Attention(q, q, k, mask)", 0),
    ],
)
def test_each_form_of_attention_builds(text: str, kernels: int, tmp_path: Path) -> None:
    shape = "[batch, 2, sequence, 16]"
    program = lowered(
        graph_of(
            f"g (float{shape} q, float{shape} k, bool[sequence, sequence] mask)"
            f" => (float{shape} y) {{ {text} y = Add(a, a) }}"
        ),
        batch=Dim(1, 2),
        sequence=Dim(1, 32),
    )
    emission = emit(program, tmp_path, compute="sm89")
    assert emission.details["decode"]["attention"] == {"nodes": kernels, "kernels": kernels}


# Profiles ------------------------------------------------------------------------------------


def specs(**shapes: tuple[Any, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


def profile(inputs: tuple[TensorSpec, ...], **dims: Dim) -> Any:
    return profile_of(
        Lowered("p", ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), inputs, (), dims)
    )


def test_sums_agree_with_their_terms() -> None:
    inputs = specs(
        x=("batch", "sequence"),
        mask=("batch", "past + sequence"),
        past=("past", 8),
        memory=("memory", 8),
    )
    ranges = {"batch": Dim(2, 4), "sequence": Dim(1, 16), "past": Dim(0, 64), "memory": Dim(1, 32)}
    found = profile(inputs, **ranges)
    assert found == {
        "x": ((2, 1), (2, 1), (4, 16)),
        "mask": ((2, 1), (2, 65), (4, 80)),
        "past": ((0, 8), (64, 8), (64, 8)),
        "memory": ((1, 8), (32, 8), (32, 8)),
    }


def test_dimension_without_a_bound_gets_a_finite_one() -> None:
    found = profile(specs(x=("batch", "sequence"), fixed=(3, 4)))
    assert found == {"x": ((1, 1), (1, 128), (8, UNBOUNDED_LENGTH))}
    far = profile(specs(x=("batch", "sequence")), sequence=Dim(2000))
    assert far["x"] == ((1, 2000), (1, 2000), (8, 2000))


# Options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        ("sm90", "cannot build for compute capability 'sm90': expected sm75, sm80, sm86, sm89"),
        ("sm89,ada", "cannot build for compute capability 'ada'"),
        (",", "No compute capability is asked for"),
    ],
)
def test_compute_that_cannot_be_is_refused(compute: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TARGET.check_options({"compute": compute})


def test_turing_has_no_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sm75 has no bf16"):
        emit(layer("bf16"), tmp_path, "bf16", compute="sm75,sm89")


def test_other_precisions_and_options_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="expected fp16 or bf16"):
        TARGET.check_precision("fp32")
    with pytest.raises(UsageError, match="has no option 'sm'"):
        TARGET.check_options({"sm": "89"})


# Refusals ------------------------------------------------------------------------------------

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
        emit(lowered(graph, n=Dim(1, 4)), tmp_path)
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
        emit(lowered(graph, n=Dim(1, 4)), tmp_path)


def test_heads_that_are_not_fixed_are_written_out(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[b, n, t, 16] q, float[b, m, t, 16] k) => (float[b, n, t, 16] y)"
        "{ y = Attention(q, k, k) }"
    )
    program = lowered(graph, b=Dim(1, 2), n=Dim(2, 4), m=Dim(2, 4), t=Dim(1, 4))
    assert "Attention" not in {node.op_type for node in program.graph.graph}
