"""Weights of equal content are stored once, and computed with as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.lowering import Lowered, find_target
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.passes.base import run_passes
from omnigraph.passes.fold_weight_transposes import FoldWeightTransposes
from omnigraph.passes.share_weights import ShareWeights
from omnigraph.testing import assert_pass, graph_from_text, graph_with_weights
from omnigraph.tracing.trace import output_specs

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((32, 16)).astype(np.float32)
IDS = {"i": np.array([3, 0, 31])}
APART = """g (int64[N] i, float[32,16] table, float[16,32] head) => (float[N,32] y)
    { e = Gather(table, i)  y = MatMul(e, head) }"""
TIED = """g (int64[N] i, float[32,16] table) => (float[N,32] y)
    { t = Transpose<perm=[1,0]>(table)  e = Gather(table, i)  y = MatMul(e, t) }"""


def test_a_transposed_copy_becomes_a_transpose():
    before = graph_with_weights(APART, table=TABLE, head=np.ascontiguousarray(TABLE.T))
    assert_pass(ShareWeights(), before, graph_with_weights(TIED, table=TABLE), IDS)


def test_the_one_that_is_looked_up_is_kept_whichever_comes_first():
    text = APART.replace(
        "float[32,16] table, float[16,32] head", "float[16,32] head, float[32,16] table"
    )
    before = graph_with_weights(text, head=np.ascontiguousarray(TABLE.T), table=TABLE)
    run_passes(before, (ShareWeights(),))
    assert list(before.graph.initializers) == ["table"]


def test_equal_weights_become_one_before_either_is_transposed():
    before = graph_with_weights(
        """g (int64[N] i, float[32,16] table, float[32,16] head) => (float[N,32] y)
        { e = Gather(table, i)  t = Transpose<perm=[1,0]>(head)  y = MatMul(e, t) }""",
        table=TABLE,
        head=TABLE.copy(),
    )
    run_passes(before, (ShareWeights(), FoldWeightTransposes()))
    assert list(before.graph.initializers) == ["table"]


@pytest.mark.parametrize(
    "other",
    [
        np.ascontiguousarray(TABLE.T) + np.float32(1e-7),
        np.where(np.arange(16 * 32).reshape(16, 32) == 77, -TABLE.T, TABLE.T),
        np.zeros((16, 32), np.float32),
    ],
    ids=["all", "one element", "zeros"],
)
def test_weights_that_differ_are_left(other: np.ndarray):
    graph = graph_with_weights(APART, table=TABLE, head=np.ascontiguousarray(other))
    assert_pass(ShareWeights(), graph, None, IDS)


def test_vectors_are_left():
    ones = np.ones(512, np.float32)
    graph = graph_with_weights(
        """g (float[N,512] x, float[512] a, float[512] b) => (float[N,512] y)
        { m = Mul(x, a)  y = Mul(m, b) }""",
        a=ones,
        b=ones.copy(),
    )
    assert_pass(ShareWeights(), graph, None, {"x": np.ones((2, 512), np.float32)})


def test_small_square_and_other_types_are_left():
    graph = graph_with_weights(APART, table=TABLE, head=np.ascontiguousarray(TABLE.T))
    assert_pass(ShareWeights(least_bytes=1 << 20), graph, None, IDS)
    square = RNG.standard_normal((16, 16)).astype(np.float32)
    text = """g (float[N,16] x, float[16,16] a, float[16,16] b) => (float[N,16] y)
        { h = MatMul(x, a)  y = MatMul(h, b) }"""
    graph = graph_with_weights(text, a=square, b=np.ascontiguousarray(square.T))
    feeds = {"x": RNG.standard_normal((3, 16)).astype(np.float32)}
    assert_pass(ShareWeights(), graph, None, feeds)
    text = """g (int64[N] i, float[32,16] table, int32[32,16] bits) => (float[N,16] y)
        { e = Gather(table, i)  b = Gather(bits, i)  c = Cast<to=1>(b)  y = Add(e, c) }"""
    graph = graph_with_weights(text, table=TABLE, bits=TABLE.view(np.int32))
    assert_pass(ShareWeights(), graph, None, IDS)


@given(copies=st.lists(st.integers(0, 2), min_size=2, max_size=5), turned=st.booleans())
@settings(max_examples=15, deadline=None)
def test_as_many_are_left_as_there_are_contents(copies: list[int], turned: bool):
    contents = [RNG.standard_normal((32, 16)).astype(np.float32) for _ in range(3)]
    arrays = {f"w{n}": contents[c].copy() for n, c in enumerate(copies)}
    if turned:
        arrays["w0"] = np.ascontiguousarray(arrays["w0"].T)
    given_ = ", ".join(f"float[{a.shape[0]},{a.shape[1]}] {n}" for n, a in arrays.items())
    lines = [
        f"e{n} = {'MatMul(x, w0)' if turned and n == 0 else f'Gather(w{n}, i)'}"
        for n in range(len(copies))
    ]
    outputs = ", ".join(
        f"float[N,{32 if turned and n == 0 else 16}] e{n}" for n in range(len(copies))
    )
    text = f"g (float[N,16] x, int64[N] i, {given_}) => ({outputs}) {{ {' '.join(lines)} }}"
    graph = graph_with_weights(text, **arrays)
    changed = run_passes(graph, (ShareWeights(),))[0].modified
    assert len(graph.graph.initializers) == len(set(copies))
    assert changed == (len(set(copies)) < len(copies))
    assert not run_passes(graph, (ShareWeights(),))[0].modified


def test_a_graph_without_weights_is_left():
    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    assert_pass(ShareWeights(), graph, None, {"x": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("target", "precision"), [("onnx", "fp32"), ("openvino", "fp32"), ("tensorrt", "fp16")]
)
def test_a_tied_embedding_is_stored_once(traced, target: str, precision: str, tmp_path: Path):
    sizes = {}
    for tied in (True, False):
        made = traced("forward", kind="decoder", positions="alibi", tie_embeddings=tied)
        graph = made.graph.clone()
        run_passes(graph, (ShareWeights(), *find_target(target).pipeline(precision)))
        specs = output_specs(graph)
        program = Lowered("forward", graph, made.program.inputs, specs, made.program.dims)
        out = tmp_path / str(tied)
        out.mkdir()
        if target == "tensorrt":  # an engine is the compiler's own; the ONNX beside it is ours
            write_onnx([program], out)
        else:
            find_target(target).emit([program], out, precision=precision, options={})
        sizes[tied] = (out / "weights.bin").stat().st_size
    one = 256 * 64 * (2 if precision == "fp16" else 4)
    assert sizes[False] - sizes[True] == one
