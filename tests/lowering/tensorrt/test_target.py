"""The tensorrt target: engines built here, their profiles, and the options of a build."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tensorrt_programs import HEADS, SIZE, TARGET, WIDTH, emit, graph_of, lower

from omnigraph.contract.tolerance import Tolerance, deviation
from omnigraph.errors import UnsupportedError, UsageError
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.plan import plan_jobs
from omnigraph.lowering import Lowered
from omnigraph.lowering.tensorrt.build import UNBOUNDED_LENGTH, profile_of
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.program import Dim, TensorSpec

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


def layer(precision: str = "fp16", name: str = "decode", **sizes: int) -> Lowered:
    dims = {"batch": Dim(1, 4), "sequence": Dim(1, 16), "past": Dim(0, 32)}
    return lower(graph_of(LAYER, **sizes), precision, name, **dims)


def feeds(batch: int, sequence: int, past: int, size: int = SIZE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    mask = np.ones((batch, past + sequence), np.int64)
    mask[-1, : past // 2] = 0
    return {
        "ids": rng.integers(0, 64, (batch, sequence)),
        "mask": mask,
        "past_key": rng.normal(size=(batch, HEADS, past, size)).astype(np.float32),
    }


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
    program = lower(
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


def test_compute_from_python_may_be_a_number() -> None:
    with pytest.raises(UsageError, match="cannot build for compute capability '89': expected sm75"):
        plan_jobs("tensorrt", ExportOptions(settings={"compute": 89}))


def test_turing_has_no_bfloat16(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="sm75 has no bf16"):
        emit(layer("bf16"), tmp_path, "bf16", compute="sm75,sm89")


def test_other_precisions_and_options_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="expected fp16 or bf16"):
        TARGET.check_precision("fp32")
    with pytest.raises(UsageError, match="has no option 'sm'"):
        TARGET.check_options({"sm": "89"})


# Refusals ------------------------------------------------------------------------------------


def test_heads_that_are_not_fixed_are_written_out(tmp_path: Path) -> None:
    graph = graph_of(
        "g (float[b, n, t, 16] q, float[b, m, t, 16] k) => (float[b, n, t, 16] y)"
        "{ y = Attention(q, k, k) }"
    )
    program = lower(graph, b=Dim(1, 2), n=Dim(2, 4), m=Dim(2, 4), t=Dim(1, 4))
    assert "Attention" not in {node.op_type for node in program.graph.graph}
