"""decompose-partial-rotary: partial rotations of halves are written out, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.decompose_partial_rotary import DecomposePartialRotary
from omnigraph.passes.fuse_rotary import FuseRotary
from omnigraph.testing import EXACT, assert_pass, graph_from_text

PARTIAL = """y = RotaryEmbedding<interleaved={interleaved}, rotary_embedding_dim={size}>
    (x, c, s)"""
WRITTEN = """c2 = Concat<axis=-1>(c, c)  i1 = Constant<value: tensor = int64[1] {1}>()
    c4 = Unsqueeze(c2, i1)
    s2 = Concat<axis=-1>(s, s)  s4 = Unsqueeze(s2, i1)
    i0 = Constant<value: tensor = int64[1] {0}>()  i8 = Constant<value: tensor = int64[1] {8}>()
    i3 = Constant<value: tensor = int64[1] {3}>()  xr = Slice(x, i0, i8, i3)
    i12 = Constant<value: tensor = int64[1] {12}>()  xp = Slice(x, i8, i12, i3)
    i4 = Constant<value: tensor = int64[1] {4}>()
    a = Slice(xr, i0, i4, i3)  b = Slice(xr, i4, i8, i3)
    n = Neg(b)  t = Concat<axis=-1>(n, a)  m = Mul(xr, c4)  o = Mul(t, s4)  r = Add(m, o)
    y = Concat<axis=-1>(r, xp)"""


def graph(body: str, features: int = 12, half: int = 4) -> Graph:
    return graph_from_text(
        f"""g (float[B,2,T,{features}] x, float[B,T,{half}] c, float[B,T,{half}] s)
        => (float[B,2,T,{features}] y) {{ {body} }}"""
    )


def feeds(features: int = 12, half: int = 4, batch: int = 3, length: int = 5):
    rng = np.random.default_rng(features + batch)
    shapes = {"x": (batch, 2, length, features), "c": (batch, length, half)}
    given_ = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    return given_ | {"s": rng.standard_normal(shapes["c"]).astype(np.float32)}


def test_decompose_partial_rotary_writes_out_the_products():
    before = graph(PARTIAL.format(interleaved=0, size=8))
    assert_pass(DecomposePartialRotary(), before, graph(WRITTEN), feeds())


def test_decompose_partial_rotary_is_undone_by_fuse_rotary():
    before = graph(PARTIAL.format(interleaved=0, size=8))
    run_passes(before, (DecomposePartialRotary(), FuseRotary()))
    assert [n.op_type for n in before.graph if n.op_type != "Constant"] == ["RotaryEmbedding"]


@pytest.mark.parametrize(
    ("interleaved", "size", "features", "half"), [(0, 0, 8, 4), (1, 8, 12, 4), (0, 8, 8, 4)]
)
def test_decompose_partial_rotary_leaves_whole_heads_and_neighbours(
    interleaved, size, features, half
):
    before = graph(PARTIAL.format(interleaved=interleaved, size=size), features, half)
    assert_pass(DecomposePartialRotary(), before, None, feeds(features, half))


def test_decompose_partial_rotary_leaves_positions_from_a_table():
    before = graph_from_text(
        """g (float[B,2,T,12] x, float[9,4] c, float[9,4] s, int64[B,T] p)
        => (float[B,2,T,12] y) { y = RotaryEmbedding<rotary_embedding_dim=8>(x, c, s, p) }"""
    )
    rng = np.random.default_rng(0)
    table = rng.standard_normal((9, 4)).astype(np.float32)
    given_ = {"x": feeds()["x"], "c": table, "s": table, "p": rng.integers(0, 9, (3, 5))}
    assert_pass(DecomposePartialRotary(), before, None, given_)


def test_openvino_runs_the_written_form_as_one_rotation():
    """The reason for this pass: where OpenVINO learns to fuse the op, it can go."""
    openvino = pytest.importorskip("openvino")
    import onnx_ir as ir

    def layers(part: Graph) -> set[str]:
        core = openvino.Core()
        model = core.read_model(ir.to_proto(part).SerializeToString())
        nodes = core.compile_model(model, "CPU").get_runtime_model().get_ordered_ops()
        return {node.get_rt_info()["layerType"].astype(str) for node in nodes}

    # A head that is an input itself is no query: one node on each side, as projections are.
    body = "h = Relu(x)  z = RotaryEmbedding<rotary_embedding_dim=8>(h, c, s)  y = Relu(z)"
    plain, written = graph(body), graph(body)
    run_passes(written, (DecomposePartialRotary(),))
    assert "RoPE" not in layers(plain)
    assert "RoPE" in layers(written)


@settings(max_examples=15, deadline=None)
@given(
    half=st.integers(1, 3),
    rest=st.integers(1, 5),
    batch=st.integers(1, 3),
    length=st.integers(1, 4),
)
def test_decompose_partial_rotary_keeps_the_numbers(half, rest, batch, length):
    features = 2 * half + rest
    before = graph(PARTIAL.format(interleaved=0, size=2 * half), features, half)
    given_ = feeds(features, half, batch, length)
    expected = GraphRunner(before.clone()).run(given_)
    run_passes(before, (DecomposePartialRotary(),))
    assert not count_ops(before)["RotaryEmbedding"]
    for found in deviations(GraphRunner(before).run(given_), expected).values():
        assert found.within(EXACT)
