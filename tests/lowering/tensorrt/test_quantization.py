"""Quantized Graphs on TensorRT: engines of every form, for every GPU, and their numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from tensorrt_programs import TARGET, lower

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.errors import UsageError
from omnigraph.graph import Graph, count_ops
from omnigraph.lowering import Lowered
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.program import Dim
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
WIDTH, ROWS = 128, 5
#: The range of an input [B, T, 128] of unit normals, and the step of its 255 and of 448 levels.
STEP8, STEPF = np.array(4 / 127, np.float32), np.array(4 / 448, np.float32)
ZERO8, ZEROF = np.array(0, np.int8), np.zeros((), ml_dtypes.float8_e4m3fn)


def int8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def steps(*shape: int, levels: int = 127) -> np.ndarray:
    return (RNG.uniform(2, 4, shape) / levels / np.sqrt(WIDTH)).astype(np.float32)


def float8(*shape: int) -> np.ndarray:
    return (RNG.normal(size=shape) * 100).astype(ml_dtypes.float8_e4m3fn)


def int4(*shape: int) -> np.ndarray:
    return RNG.integers(-8, 8, shape).astype(ml_dtypes.int4)


@dataclass(frozen=True)
class Form:
    """A small network in a form that quantization gives, and what becomes of its products.

    Args:
        inputs, nodes: ONNX text; weights are inputs of their names.
        products: of the engine.
        roundings: to fp16, on the longest path.
    """

    inputs: str
    nodes: str
    weights: dict[str, np.ndarray]
    products: dict[str, int]
    roundings: int = 3
    columns: int = WIDTH
    compute: tuple[str, ...] = ("sm80", "sm86", "sm89", "sm120", "sm121")
    dims: dict[str, Dim] = field(default_factory=lambda: {"B": Dim(1, 4), "T": Dim(1, 16)})

    def graph(self) -> Graph:
        return graph_with_weights(
            f"g ({self.inputs}) => (float[B,T,{self.columns}] y) {{ {self.nodes} }}", **self.weights
        )

    def lowered(self, precision: str) -> Lowered:
        return lower(self.graph(), precision, "forward", **self.dims)


X = f"float[B,T,{WIDTH}] x"
Q = "q = QuantizeLinear(x, step, zero) d = DequantizeLinear(q, step, zero)"
LOOKUP = """
    rows = Gather(w, ids)
    wide = Cast<to = 1>(rows)
    picked = Gather(s, ids)
    axis = Constant<value_ints = [-1]>()
    column = Unsqueeze(picked, axis)
    x = Mul(wide, column)
"""
W8 = f"int8[{WIDTH},{WIDTH}] w, float[{WIDTH}] s"
ACTIVATION8 = {"step": STEP8, "zero": ZERO8}
STATIC = f"{X}, {W8}, float step, int8 zero"

FORMS = {
    "int8": Form(
        STATIC,
        f"{Q} v = DequantizeLinear<axis = 1>(w, s) y = MatMul(d, v)",
        {"w": int8(WIDTH, WIDTH), "s": steps(WIDTH), **ACTIVATION8},
        {"int8": 1},
    ),
    "int8-bias": Form(
        f"{STATIC}, float[{WIDTH}] b",
        f"{Q} v = DequantizeLinear<axis = 1>(w, s) m = MatMul(d, v) n = Add(m, b) y = Gelu(n)",
        {"w": int8(WIDTH, WIDTH), "s": steps(WIDTH), "b": steps(WIDTH, levels=1), **ACTIVATION8},
        {"int8": 1},
        roundings=7,
    ),
    "int8-turned": Form(
        STATIC,
        f"{Q} v = DequantizeLinear<axis = 0>(w, s) t = Transpose<perm = [1, 0]>(v)"
        " y = MatMul(d, t)",
        {"w": int8(WIDTH, WIDTH), "s": steps(WIDTH), **ACTIVATION8},
        {"int8": 1},
    ),
    "int8-of-a-norm": Form(
        f"{STATIC}, float[{WIDTH}] g",
        "n = RMSNormalization(x, g) q = QuantizeLinear(n, step, zero)"
        " d = DequantizeLinear(q, step, zero) v = DequantizeLinear<axis = 1>(w, s)"
        " y = MatMul(d, v)",
        {"w": int8(WIDTH, WIDTH), "s": steps(WIDTH), "g": np.ones(WIDTH, np.float32)} | ACTIVATION8,
        {"int8": 1},
    ),
    "int8-weights": Form(
        f"{X}, {W8}",
        "v = DequantizeLinear<axis = 1>(w, s) y = MatMul(x, v)",
        {"w": int8(WIDTH, WIDTH), "s": steps(WIDTH)},
        {"fp16 x int8": 1},
    ),
    "int4-weights": Form(
        f"{X}, int4[{WIDTH},{WIDTH}] w, float[2,{WIDTH}] s",
        "v = DequantizeLinear<axis = 0, block_size = 64>(w, s) y = MatMul(x, v)",
        {"w": int4(WIDTH, WIDTH), "s": steps(2, WIDTH, levels=8)},
        {"fp16 x int4": 1},
        roundings=4,
    ),
    "int4-ragged": Form(
        f"{X}, int4[{WIDTH},{WIDTH}] w, float[3,{WIDTH}] s",
        "v = DequantizeLinear<axis = 0, block_size = 60>(w, s) y = MatMul(x, v)",
        {"w": int4(WIDTH, WIDTH), "s": steps(3, WIDTH, levels=8)},
        {"fp16 x int4": 1},
        roundings=4,
    ),
    "int4-turned": Form(
        f"{X}, int4[{WIDTH},{WIDTH}] w, float[{WIDTH},4] s",
        "v = DequantizeLinear<axis = 1, block_size = 32>(w, s) t = Transpose<perm = [1, 0]>(v)"
        " y = MatMul(x, t)",
        {"w": int4(WIDTH, WIDTH), "s": steps(WIDTH, 4, levels=8)},
        {"fp16 x int4": 1},
        roundings=4,
    ),
    "fp8": Form(
        f"{X}, float8e4m3fn[{WIDTH},{WIDTH}] w, float[{WIDTH}] s, float step, float8e4m3fn zero",
        f"{Q} v = DequantizeLinear<axis = 1>(w, s) y = MatMul(d, v)",
        {
            "w": float8(WIDTH, WIDTH),
            "s": steps(WIDTH, levels=448),
            "step": STEPF,
            "zero": ZEROF,
        },
        {"fp8": 1},
        compute=("sm89", "sm120", "sm121"),
    ),
    "embedding-and-logits": Form(
        f"int64[B,T] ids, int8[64,{WIDTH}] w, float[64] s, float step, int8 zero",
        f"{LOOKUP} {Q} v = DequantizeLinear<axis = 0>(w, s) t = Transpose<perm = [1, 0]>(v)"
        " y = MatMul(d, t)",
        {"w": int8(64, WIDTH), "s": steps(64), "step": np.float32(0.003), "zero": ZERO8},
        {"int8": 1},
        roundings=4,
        columns=64,
    ),
}


@pytest.fixture(scope="module")
def emitted(tmp_path_factory):
    """Each form's emission, built once, and the folder it is in."""
    built: dict[tuple[str, str], tuple[Any, Path]] = {}

    def emission(name: str, precision: str = "int8"):
        if (name, precision) not in built:
            out = tmp_path_factory.mktemp(name)
            program = FORMS[name].lowered(precision)
            made = TARGET.emit([program], out, precision=precision, options={})
            built[name, precision] = made, out
        return built[name, precision]

    return emission


def feeds(form: Form) -> dict[str, np.ndarray]:
    """Inputs that fp16 holds exactly, so that both Graphs quantize the same numbers."""
    rng = np.random.default_rng(1)
    if "ids" in form.inputs:
        return {"ids": rng.integers(0, 64, (2, ROWS))}
    half = rng.normal(size=(2, ROWS, WIDTH)).astype(np.float16)
    return {"x": half.astype(np.float32)}


# What is built -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_engine_multiplies_what_is_quantized_as_it_is_stored(name: str, emitted) -> None:
    emission, _ = emitted(name)
    details = emission.details["forward"]
    assert details["products"] == FORMS[name].products
    assert tuple(details["compute"]) == FORMS[name].compute


@pytest.mark.parametrize(
    ("name", "bytes_of_one"), [("int8", 1), ("int8-weights", 1), ("int4-weights", 0.5), ("fp8", 1)]
)
def test_weights_are_stored_as_they_are(name: str, bytes_of_one: float, emitted) -> None:
    emission, folder = emitted(name)
    weights = WIDTH * WIDTH * bytes_of_one
    scales = FORMS[name].weights["s"].size * 4
    for found in (
        (folder / "weights.bin").stat().st_size,
        emission.details["forward"]["engine"]["weight_bytes"],
    ):
        assert weights <= found <= weights + scales + 8192  # alignments, and a few numbers


@pytest.mark.parametrize("name", [n for n in FORMS if n != "embedding-and-logits"])
def test_lowered_graph_has_the_numbers_of_the_quantized_one(name: str, emitted) -> None:
    check_numbers(name, "int8", emitted)


@pytest.mark.parametrize("name", ["int8-bias", "int8-weights", "fp8"])
def test_bfloat16_stands_around_what_is_quantized_too(name: str, emitted) -> None:
    check_numbers(name, "bf16", emitted)
    assert emitted(name, "bf16")[0].details["forward"]["products"] == {
        kind.replace("fp16", "bf16"): count for kind, count in FORMS[name].products.items()
    }


def check_numbers(name: str, precision: str, emitted) -> None:
    form = FORMS[name]
    emission, folder = emitted(name, precision)
    given = feeds(form)
    if precision == "bf16":
        given = {"x": given["x"].astype(ml_dtypes.bfloat16).astype(np.float32)}
    expected = GraphRunner(form.graph()).run(given)
    graph = ir.load(folder / emission.files["forward"]["lowered"])
    assert EmulateBfloat16()(graph).modified == (precision == "bf16")
    tolerance = Tolerance.for_precision(
        TARGET.rounding(precision), depth=form.roundings, contraction=WIDTH
    )
    assert deviations(GraphRunner(graph).run(given), expected)["y"].within(tolerance)


def test_an_embedding_is_rounded_to_fp16_before_it_is_quantized(emitted) -> None:
    form = FORMS["embedding-and-logits"]
    emission, folder = emitted("embedding-and-logits")
    given = feeds(form)
    expected = GraphRunner(form.graph()).run(given)["y"]
    graph = ir.load(folder / emission.files["forward"]["lowered"])
    assert count_ops(graph)["DequantizeLinear"] == 2  # the table's, once for both of its uses
    found = GraphRunner(graph).run(given)["y"]
    # An activation that fp16 moves by e falls to the next of its steps a with probability e/a, so
    # that its mean square error is e a; e is half of 2**-11 of an activation at most.
    table = form.weights["w"].astype(np.float32) * form.weights["s"][:, None]
    step = float(form.weights["step"])
    flips = np.sqrt(np.abs(table).mean() * 2.0**-12 * step) / np.sqrt(np.square(table).mean())
    fp16 = Tolerance.for_precision("fp16", depth=form.roundings, contraction=WIDTH).rms
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert error < 2 * flips + fp16


def test_a_layer_of_every_kind_of_product(tmp_path: Path) -> None:
    """Norm, attention and feed-forward, of int8: attention keeps its fused kernel in fp16."""
    size = f"int8[{WIDTH},{WIDTH}]"
    names = ("q", "k", "v", "o", "up", "down")
    product = "{0}w = DequantizeLinear<axis = 1>(w{0}, s) {0}1 = MatMul({1}, {0}w)"
    quantize = "{0}q = QuantizeLinear({0}, step, zero) {0}d = DequantizeLinear({0}q, step, zero)"
    heads = "{0}2 = Reshape({0}1, split) {0}h = Transpose<perm = [0, 2, 1, 3]>({0}2)"
    body = [
        "split = Constant<value_ints = [0, 0, 4, 32]>()",
        f"join = Constant<value_ints = [0, 0, {WIDTH}]>()",
        "n = RMSNormalization(x, g)",
        quantize.format("n"),
        *(product.format(name, "nd") + heads.format(name) for name in "qkv"),
        "a = Attention(qh, kh, vh)",
        "a1 = Transpose<perm = [0, 2, 1, 3]>(a)",
        "a2 = Reshape(a1, join)",
        quantize.format("a2"),
        product.format("o", "a2d"),
        "r = Add(x, o1)",
        "m = RMSNormalization(r, g)",
        quantize.format("m"),
        product.format("up", "md"),
        "f = Gelu(up1)",
        quantize.format("f"),
        product.format("down", "fd"),
        "y = Add(r, down1)",
    ]
    form = Form(
        ", ".join([X, f"float[{WIDTH}] g", f"float[{WIDTH}] s", "float step", "int8 zero"])
        + "".join(f", {size} w{name}" for name in names),
        "\n".join(body),
        {
            **{f"w{name}": int8(WIDTH, WIDTH) for name in names},
            "g": np.ones(WIDTH, np.float32),
            "s": steps(WIDTH),
            **ACTIVATION8,
        },
        {},
    )
    emission = TARGET.emit([form.lowered("int8")], tmp_path, precision="int8", options={})
    details = emission.details["forward"]
    assert details["attention"] == {"nodes": 1, "kernels": 1}
    assert set(details["products"]) == {"int8"}  # those that read one tensor become one
    assert 4 <= details["products"]["int8"] <= 6


# GPUs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compute", "message"),
    [
        ("fp8", "sm80,sm89", "sm80 has no fp8: expected sm89, sm120, sm121"),
        ("int4-weights", "sm75", "sm75 has no int4: expected sm80"),
    ],
)
def test_a_gpu_without_the_type_is_refused(
    name: str, compute: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        TARGET.emit(
            [FORMS[name].lowered("int8")], tmp_path, precision="int8", options={"compute": compute}
        )


@pytest.mark.parametrize(
    ("name", "compute", "products"),
    [
        ("int8", "sm75", {"int8": 1}),
        ("int8", "sm120", {"int8": 1}),
        # Turing's kernels do not widen weights as they read them, but all of them before.
        ("int8-weights", "sm75", {"fp16": 1}),
        ("int8-weights", "sm120", {"fp16 x int8": 1}),
    ],
)
def test_int8_is_for_every_gpu(
    name: str, compute: str, products: dict[str, int], tmp_path: Path
) -> None:
    program = FORMS[name].lowered("int8")
    emission = TARGET.emit([program], tmp_path, precision="int8", options={"compute": compute})
    assert emission.details["forward"]["products"] == products
