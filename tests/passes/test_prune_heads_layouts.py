"""Heads are pruned wherever they lie: grouped, packed, flat, rotated, masked, and in a past."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from head_pruning_graphs import (
    FEEDS,
    GATE,
    C,
    D,
    H,
    graph_with,
    grouped_layer,
    layer,
    layer_weights,
    shapes,
    weights,
)

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.testing import EXACT, assert_miss, graph_text

GROUPED = f"""g (float[B,T,{C}] x, float[{C},8] wq, float[{C},4] wk, float[{C},4] wv,
      float[8,{C}] wo, int64[4] split, int64[4] split_key, int64[3] merge)
   => (float[B,T,{C}] y) {{ {grouped_layer("a = Attention(q, k, v)")} }}"""


def grouped() -> Graph:
    """Four query heads on two key heads."""
    constants = weights(wq=(C, 8), wk=(C, 4), wv=(C, 4), wo=(8, C)) | shapes(4, 2)
    return graph_with(GROUPED, constants)


@pytest.mark.parametrize(
    ("gone", "queries", "keys", "became"),
    [
        ((0, 1), 2, 1, "2 of 4 heads, 1 of 2 key heads"),
        ((0, 3), 2, 2, "2 of 4 heads, 2 of 2 key heads"),
        ((0, 2, 3), 1, 1, "1 of 4 heads, 1 of 2 key heads"),
        ((2,), 4, 2, "4 of 4 heads, 2 of 2 key heads, 1 of them with rows of 0"),
    ],
)
def test_a_key_head_goes_with_the_last_of_its_query_heads(gone, queries, keys, became):
    graph, silent = grouped(), grouped()
    rows = silent.graph.initializers["wo"].const_value.numpy().copy()
    for head in gone:
        rows[2 * head : 2 * head + 2] = 0
    silent.graph.initializers["wo"].const_value = ir.tensor(rows, name="wo")
    pass_ = PruneHeads(heads=(("model", gone),))
    (record,) = run_passes(graph, [pass_])
    check_graph(graph, "prune-heads")
    assert [finding.became for finding in record.findings] == [became]
    (attention,) = (node for node in graph.graph if node.op_type == "Attention")
    assert attention.inputs[0].shape[1] == queries
    assert attention.inputs[1].shape[1] == attention.inputs[2].shape[1] == keys
    expected = GraphRunner(silent).run(FEEDS)
    assert deviations(GraphRunner(graph).run(FEEDS), expected)["y"].within(EXACT)
    text = graph_text(graph)
    assert not run_passes(graph, [pass_])[0].modified
    assert graph_text(graph) == text


PACKED = f"""g (float[B,T,{C}] x, float[{C},24] w, float[24] b, float[8,{C}] wo, int64[3] sizes,
      int64[1] zero, int64[1] eight, int64[1] sixteen, int64[1] last, int64[1] two)
   => (float[B,T,{C}] y) {{
  p = MatMul(x, w)
  p1 = Add(p, b)
  TAKE
  a = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v)
  y = Gemm_or_MatMul(a, wo)
}}"""


@pytest.mark.parametrize(
    "take",
    [
        "q, k, v = Split<axis=2>(p1, sizes)",
        "q = Slice(p1, zero, eight, two)\n k = Slice(p1, eight, sixteen, two)\n"
        "v = Slice(p1, sixteen, last, two)",
    ],
)
def test_packed_projections_come_apart(take: str):
    text = PACKED.replace("TAKE", take).replace("Gemm_or_MatMul", "MatMul")
    constants = weights(w=(C, 24), b=(24,), wo=(8, C)) | {
        "sizes": np.array([8, 8, 8]),
        "zero": np.array([0]),
        "eight": np.array([8]),
        "sixteen": np.array([16]),
        "last": np.array([2**62]),
        "two": np.array([2]),
    }
    constants["wo"][2:6] = 0
    after = graph_with(
        f"""g (float[B,T,{C}] x, float[{C},4] wq, float[4] bq, float[{C},4] wk, float[4] bk,
               float[{C},4] wv, float[4] bv, float[4,{C}] wo) => (float[B,T,{C}] y) {{
            p = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
            q = Add(p, bq) k = Add(k0, bk) v = Add(v0, bv)
            a = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)
            y = MatMul(a, wo)
        }}""",
        weights(wq=(C, 4), bq=(4,), wk=(C, 4), bk=(4,), wv=(C, 4), bv=(4,), wo=(4, C)),
    )
    before = graph_with(text, constants)
    expected = GraphRunner(before.clone()).run(FEEDS)
    assert run_passes(before, [PruneHeads()])[0].modified
    check_graph(before, "prune-heads")
    ours, wanted = (sorted(n.op_type for n in graph.graph) for graph in (before, after))
    assert ours == wanted
    assert "w" not in before.graph.initializers
    assert before.graph.initializers["w_cut"].shape == (C, 4)
    assert deviations(GraphRunner(before).run(FEEDS), expected)["y"].within(EXACT)


#: As GPT-2 has it: [B * T, C] by Gemm, and back to [B, T, 3 * C] by a computed shape.
FLAT = f"""g (float[B,T,{C}] x, float[{C},24] w, float[24] b, float[8,{C}] wo, float[{C}] bo,
          int64[2] flat, int64[2] flat_out, int64[1] width, int64[1] size, int64[1] four,
          int64[1] two, int64[3] sizes, int64[3] merge)
       => (float[B,T,{C}] y) {{
      n0 = Shape<start=0, end=1>(x)
      n1 = Shape<start=1, end=2>(x)
      x1 = Reshape(x, flat)
      p0 = Gemm(x1, w, b)
      s0 = Concat<axis=0>(n0, n1, width)
      p = Reshape(p0, s0)
      q0, k0, v0 = Split<axis=2>(p, sizes)
      s1 = Concat<axis=0>(n0, n1, four, two)
      q1 = Reshape(q0, s1)
      k1 = Reshape(k0, s1)
      v1 = Reshape(v0, s1)
      q = Transpose<perm=[0,2,1,3]>(q1)
      k = Transpose<perm=[0,2,1,3]>(k1)
      v = Transpose<perm=[0,2,1,3]>(v1)
      a = Attention(q, k, v)
      c = Transpose<perm=[0,2,1,3]>(a)
      m = Reshape(c, merge)
      m1 = Reshape(m, flat_out)
      y1 = Gemm(m1, wo, bo)
      s2 = Concat<axis=0>(n0, n1, size)
      y = Reshape(y1, s2)
    }}"""
#: What a trace knows of its values, and onnx does not infer.
FLAT_SHAPES = {
    ("BT", C): "x1 y1",
    ("BT", 24): "p0",
    ("B", "T", 24): "p",
    ("B", "T", 8): "q0 k0 v0 m y",
    ("B", "T", 4, 2): "q1 k1 v1 c",
    ("B", 4, "T", 2): "q k v a",
    ("BT", 8): "m1",
}


def flat() -> Graph:
    constants = weights(w=(C, 24), b=(24,), wo=(8, C), bo=(C,)) | {
        "flat": np.array([-1, C]),
        "flat_out": np.array([-1, 8]),
        "width": np.array([24]),
        "size": np.array([C]),
        "four": np.array([4]),
        "two": np.array([2]),
        "sizes": np.array([8, 8, 8]),
        "merge": np.array([0, 0, 8]),
    }
    graph = graph_with(FLAT, constants)
    values = {value.name: value for node in graph.graph for value in node.outputs}
    for shape, names in FLAT_SHAPES.items():
        for name in names.split():
            values[name].shape = ir.Shape(shape)
    return graph


def test_shapes_that_are_put_together_and_flat_products():
    graph = flat()
    silent = graph.clone()
    rows = silent.graph.initializers["wo"].const_value.numpy().copy()
    rows[2:6] = 0
    silent.graph.initializers["wo"].const_value = ir.tensor(rows, name="wo")
    (record,) = run_passes(graph, [PruneHeads(heads=(("model", (1, 2)),))])
    assert record.findings[0].became == "2 of 4 heads"
    check_graph(graph, "prune-heads")
    assert graph.graph.initializers["wo_cut"].shape == (4, C)
    assert "w" not in graph.graph.initializers
    expected = GraphRunner(silent).run(FEEDS)
    assert deviations(GraphRunner(graph).run(FEEDS), expected)["y"].within(EXACT)


def test_a_mask_that_cannot_be_followed_is_cut_where_it_is_read():
    text = layer(H, H * D, "c = Mul(a, gate)").replace("k, v, slope)", "k, v, mask)")
    text = text.replace("a = Attention", "mask = CumSum(slope, axis)\n a = Attention")
    text = text.replace("int64[4] split", "int64 axis, int64[4] split")
    graph = graph_with(text, layer_weights() | {"gate": GATE, "axis": np.array(2)})
    expected = GraphRunner(graph.clone()).run(FEEDS)
    (record,) = run_passes(graph, [PruneHeads()])
    assert record.findings[0].became == "2 of 4 heads"
    assert (record.after["Gather"], record.after["CumSum"]) == (1, 1)
    check_graph(graph, "prune-heads")
    assert deviations(GraphRunner(graph).run(FEEDS), expected)["y"].within(EXACT)


def test_rotary_embedding_of_three_axes_turns_fewer_heads():
    text = f"""g (float[B,4,{C}] x, float[{C},16] wq, float[{C},16] wk, float[{C},16] wv,
          float[16,{C}] wo, float[9,2] cos, float[9,2] sin, int64[B,4] ids)
       => (float[B,4,{C}] y) {{
      q0 = MatMul(x, wq)
      q = RotaryEmbedding<num_heads=4>(q0, cos, sin, ids)
      k0 = MatMul(x, wk)
      k = RotaryEmbedding<num_heads=4>(k0, cos, sin, ids)
      v = MatMul(x, wv)
      a = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(q, k, v)
      y = MatMul(a, wo)
    }}"""
    constants = weights(
        wq=(C, 16), wk=(C, 16), wv=(C, 16), wo=(16, C), cos=(9, 2), sin=(9, 2)
    )  # fmt: skip
    constants["wo"][:4] = 0
    graph = graph_with(text, constants)
    feeds = {"x": FEEDS["x"][:, :4], "ids": np.arange(8).reshape(2, 4)}
    expected = GraphRunner(graph.clone()).run(feeds)
    (record,) = run_passes(graph, [PruneHeads()])
    assert record.findings[0].became == "3 of 4 heads"
    turned = [node for node in graph.graph if node.op_type == "RotaryEmbedding"]
    assert [node.attributes.get_int("num_heads", 0) for node in turned] == [3, 3]
    check_graph(graph, "prune-heads")
    assert deviations(GraphRunner(graph).run(feeds), expected)["y"].within(EXACT)


WITH_PAST = f"""g (float[B,T,{C}] x, float[B,4,P,2] past_k, float[B,4,P,2] past_v, float[{C},8] w,
      float[8,{C}] wo, int64[4] split, int64[3] merge)
   => (float[B,T,{C}] y, float[B,4,S,2] present_k, float[B,4,S,2] present_v) {{
  q0 = MatMul(x, w)
  q2 = Reshape(q0, split)
  q = Transpose<perm=[0,2,1,3]>(q2)
  ATTENTION
  m0 = Transpose<perm=[0,2,1,3]>(a)
  m = Reshape(m0, merge)
  y = MatMul(m, wo)
}}"""
PASTS = {
    "concat": "present_k = Concat<axis=2>(past_k, q)\n present_v = Concat<axis=2>(past_v, q)\n"
    "a = Attention(q, present_k, present_v)",
    "attention": "a, present_k, present_v = Attention(q, q, q, , past_k, past_v)",
}


def with_past(kind: str) -> Graph:
    constants = weights(w=(C, 8), wo=(8, C)) | shapes(4)
    constants["wo"][4:6] = 0
    text = WITH_PAST.replace("ATTENTION", PASTS[kind])
    graph = graph_with(text, constants)
    for value in graph.graph.outputs[1:]:
        value.shape = ir.Shape(["B", 4, "S", 2])
    return graph


@pytest.mark.parametrize("kind", PASTS)
def test_a_past_loses_heads_where_the_boundary_may_change(kind: str):
    graph = with_past(kind)
    rng = np.random.default_rng(2)
    past = {n: rng.standard_normal((2, 4, 3, 2)).astype(np.float32) for n in ("past_k", "past_v")}
    expected = GraphRunner(graph.clone()).run(FEEDS | past)
    pass_ = PruneHeads(boundary=True)
    (record,) = run_passes(graph, [pass_])
    assert record.findings[0].became == "3 of 4 heads"
    check_graph(graph, "prune-heads")
    kept = [0, 1, 3]
    shapes_now = {v.name: list(v.shape) for v in (*graph.graph.inputs, *graph.graph.outputs)}
    assert [shapes_now[n][1] for n in ("past_k", "past_v", "present_k", "present_v")] == [3] * 4
    fed = FEEDS | {name: np.ascontiguousarray(array[:, kept]) for name, array in past.items()}
    found = GraphRunner(graph).run(fed)
    wanted = {"y": expected["y"]} | {n: expected[n][:, kept] for n in ("present_k", "present_v")}
    for name, deviation in deviations(found, wanted).items():
        assert deviation.within(EXACT), name
    assert not run_passes(graph, [pass_])[0].modified


# -- near misses -----------------------------------------------------------------------------------


def test_a_program_keeps_its_tensors_unless_told_otherwise():
    reason = "of the program has all of the heads"
    assert_miss(PruneHeads(), with_past("concat"), reason)
    assert_miss(PruneHeads(), with_past("attention"), reason)
