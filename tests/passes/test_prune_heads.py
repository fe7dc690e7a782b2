"""Heads that give nothing, or are not wanted, leave the weights; all others keep their numbers."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.errors import GraphError, UsageError
from omnigraph.graph import MODULE_KEY, OPSET, Graph
from omnigraph.models.programs import programs
from omnigraph.passes.analysis.pruning.importance import least_important
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import canonical
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.tracing.trace import reference_for
from tests.graph_checks import EXACT, assert_miss, assert_pass, graph_text

H, D, C = 4, 2, 8
#: Heads 1 and 3 are closed, and head 2 counts half.
GATE = np.array([1, 0, 0.5, 0], np.float32).reshape(1, H, 1, 1)


def weights(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def graph_with(body: str, constants: Mapping[str, np.ndarray]) -> Graph:
    """A Graph from text in which some inputs are constants."""
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["": {OPSET}]> {body}')
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.input.remove(value)
            array = constants[value.name]
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"node_{position}"
        node.metadata_props[MODULE_KEY] = "model"
    return graph


def shapes(heads: int, keys: int | None = None, size: int = D) -> dict[str, np.ndarray]:
    return {
        "split": np.array([0, 0, heads, size]),
        "split_key": np.array([0, 0, keys or heads, size]),
        "merge": np.array([0, 0, heads * size]),
    }


def layer(heads: int, width: int, gated: str = "") -> str:
    """One attention whose heads are merged and projected; ``gated`` stands after it."""
    return f"""g (float[B,T,{C}] x, float[{C},{width}] wq, float[{width}] bq, float[{C},{width}] wk,
          float[{C},{width}] wv, float[{width},{C}] wo, float[1,{heads},1,1] gate,
          float[1,{heads},5,5] slope, int64[4] split, int64[3] merge)
       => (float[B,T,{C}] y) {{
      q0 = MatMul(x, wq)
      q1 = Add(q0, bq)
      q2 = Reshape(q1, split)
      q = Transpose<perm=[0,2,1,3]>(q2)
      k0 = MatMul(x, wk)
      k2 = Reshape(k0, split)
      k = Transpose<perm=[0,2,1,3]>(k2)
      v0 = MatMul(x, wv)
      v2 = Reshape(v0, split)
      v = Transpose<perm=[0,2,1,3]>(v2)
      a = Attention(q, k, v, slope)
      {gated}
      m0 = Transpose<perm=[0,2,1,3]>(c)
      m = Reshape(m0, merge)
      y = MatMul(m, wo)
    }}"""


def layer_weights(heads: int = H, width: int = H * D) -> dict[str, np.ndarray]:
    return {
        **weights(
            wq=(C, width), bq=(width,), wk=(C, width), wv=(C, width), wo=(width, C),
            slope=(1, heads, 5, 5),
        ),
        **shapes(heads),
    }  # fmt: skip


FEEDS = {"x": np.random.default_rng(1).standard_normal((2, 5, C)).astype(np.float32)}


def test_a_constant_gate_leaves_the_heads_that_it_does_not_close():
    gated = layer(H, H * D, "c = Mul(a, gate)")
    before = graph_with(gated, layer_weights() | {"gate": GATE})
    kept = layer_weights()
    columns = [0, 1, 4, 5]
    kept = {
        **{n: kept[n][..., columns] for n in ("wq", "bq", "wk", "wv")},
        "wo": kept["wo"][columns] * np.array([[1], [1], [0.5], [0.5]], np.float32),
        "slope": kept["slope"][:, [0, 2]],
        **shapes(2),
    }
    after = graph_with(
        layer(2, 4, "c = Identity(a)").replace("c = Identity(a)", "").replace("(c)", "(a)"),
        kept | {"gate": GATE[:, :2]},
    )
    assert_pass(PruneHeads(), before, after, FEEDS)
    found = {str(v.name): v.const_value.numpy() for v in before.graph.initializers.values()}
    np.testing.assert_array_equal(found["wq_cut"], kept["wq"])
    np.testing.assert_array_equal(found["wo_cut"], kept["wo"])
    cut = {"wq_cut", "bq_cut", "wk_cut", "wv_cut", "wo_cut", "slope_cut"}
    assert set(found) == cut | {"shape_0_0_2_2", "shape_0_0_4"}
    (attention,) = (node for node in before.graph if node.op_type == "Attention")
    assert attention.metadata_props["omnigraph.heads"] == "0,2"
    assert all(node.metadata_props[MODULE_KEY] == "model" for node in before.graph)


def test_a_gate_that_closes_nothing_goes_into_the_projection():
    gate = np.full((1, H, 1, 1), 0.25, np.float32)
    before = graph_with(layer(H, H * D, "c = Mul(gate, a)"), layer_weights() | {"gate": gate})
    expected = GraphRunner(before.clone()).run(FEEDS)
    (record,) = run_passes(before, [PruneHeads()])
    assert record.findings[0].became == "4 of 4 heads"
    assert record.after["Mul"] == 0
    assert deviations(GraphRunner(before).run(FEEDS), expected)["y"].within(EXACT)


def test_rows_of_zero_are_a_closed_gate():
    constants = layer_weights()
    constants["wo"][2:4] = 0
    before = graph_with(layer(H, H * D).replace("(c)", "(a)"), constants | {"gate": GATE})
    expected = GraphRunner(before.clone()).run(FEEDS)
    (record,) = run_passes(before, [PruneHeads()])
    assert record.findings[0].became == "3 of 4 heads"
    assert deviations(GraphRunner(before).run(FEEDS), expected)["y"].within(EXACT)
    assert not run_passes(before, [PruneHeads()])[0].modified


def test_a_gate_that_depends_on_the_input_shrinks_with_the_heads():
    text = layer(H, H * D, "c = Mul(a, open)").replace(
        "a = Attention",
        "p = ReduceMean<keepdims=1>(x, one)\n g0 = MatMul(p, wg)\n g1 = Sigmoid(g0)\n"
        "g2 = Transpose<perm=[0,2,1]>(g1)\n open = Unsqueeze(g2, three)\n a = Attention",
    )
    more = "float[8,4] wg, int64[1] one, int64[1] three, "
    text = text.replace("int64[4] split", more + "int64[4] split")
    constants = layer_weights() | weights(wg=(C, H)) | {"one": np.array([1])}
    constants |= {"three": np.array([3]), "gate": GATE}
    constants["wo"][6:] = 0
    graph = graph_with(text, constants)
    expected = GraphRunner(graph.clone()).run(FEEDS)
    (record,) = run_passes(graph, [PruneHeads()])
    assert record.modified
    check_graph(graph, "prune-heads")
    assert graph.graph.initializers["wg_cut"].shape == (C, 3)
    assert deviations(GraphRunner(graph).run(FEEDS), expected)["y"].within(EXACT)


GROUPED = f"""g (float[B,T,{C}] x, float[{C},8] wq, float[{C},4] wk, float[{C},4] wv,
      float[8,{C}] wo, int64[4] split, int64[4] split_key, int64[3] merge)
   => (float[B,T,{C}] y) {{
  q0 = MatMul(x, wq)
  q2 = Reshape(q0, split)
  q = Transpose<perm=[0,2,1,3]>(q2)
  k0 = MatMul(x, wk)
  k2 = Reshape(k0, split_key)
  k = Transpose<perm=[0,2,1,3]>(k2)
  v0 = MatMul(x, wv)
  v2 = Reshape(v0, split_key)
  v = Transpose<perm=[0,2,1,3]>(v2)
  a = Attention(q, k, v)
  m0 = Transpose<perm=[0,2,1,3]>(a)
  m = Reshape(m0, merge)
  y = MatMul(m, wo)
}}"""


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


def test_shapes_that_are_put_together_and_flat_products():
    """As GPT-2 has it: [B * T, C] by Gemm, and back to [B, T, 3 * C] by a computed shape."""
    text = f"""g (float[B,T,{C}] x, float[{C},24] w, float[24] b, float[8,{C}] wo, float[{C}] bo,
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
    graph = graph_with(text, constants)
    known = {  # what a trace knows, and onnx does not infer
        ("BT", C): "x1 y1",
        ("BT", 24): "p0",
        ("B", "T", 24): "p",
        ("B", "T", 8): "q0 k0 v0 m y",
        ("B", "T", 4, 2): "q1 k1 v1 c",
        ("B", 4, "T", 2): "q k v a",
        ("BT", 8): "m1",
    }
    values = {value.name: value for node in graph.graph for value in node.outputs}
    for shape, names in known.items():
        for name in names.split():
            values[name].shape = ir.Shape(shape)
    silent = graph.clone()
    rows = constants["wo"].copy()
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


def plain(body: str = "", **changed: np.ndarray) -> Graph:
    text = layer(H, H * D, body) if body else layer(H, H * D).replace("(c)", "(a)")
    return graph_with(text, layer_weights() | {"gate": GATE} | changed)


def test_what_gives_something_stays():
    assert_miss(PruneHeads(), plain(), "each of its heads gives something")


def test_not_all_heads_go():
    zero = np.zeros((H * D, C), np.float32)
    assert_miss(PruneHeads(), plain(wo=zero), "all of its heads would go")


def test_a_program_keeps_its_tensors_unless_told_otherwise():
    reason = "of the program has all of the heads"
    assert_miss(PruneHeads(), with_past("concat"), reason)
    assert_miss(PruneHeads(), with_past("attention"), reason)


def test_heads_that_are_read_elsewhere_stay():
    graph = plain("c = Mul(a, gate)\n z = Relu(a)")
    graph.graph.outputs.append(next(n for n in graph.graph if n.op_type == "Relu").outputs[0])
    assert_miss(PruneHeads(), graph, "its heads are read by 2 kinds of nodes: Mul, Relu")


def test_heads_that_are_mixed_stay():
    graph = plain("c = Softmax<axis=1>(a)")
    assert_miss(PruneHeads(heads=(("model", (0,)),)), graph, "its heads go into Softmax")


def test_a_projection_that_is_read_elsewhere_stays():
    graph = plain("c = Mul(a, gate)\n z = Relu(k0)")
    graph.graph.outputs.append(next(n for n in graph.graph if n.op_type == "Relu").outputs[0])
    assert_miss(PruneHeads(), graph, "its projection is read by something else too")


def test_a_projection_that_is_no_constant_stays():
    graph = graph_with(
        layer(H, H * D, "c = Mul(a, gate)"),
        {k: v for k, v in (layer_weights() | {"gate": GATE}).items() if k != "wo"},
    )
    assert_miss(PruneHeads(), graph, "the output projection is not a constant matrix")


def test_queries_that_cannot_be_followed_stay():
    text = layer(H, H * D, "c = Mul(a, gate)").replace("q1 = Add(q0, bq)", "q1 = CumSum(q0, axis)")
    text = text.replace("int64[4] split", "int64 axis, int64[4] split")
    graph = graph_with(text, layer_weights() | {"gate": GATE, "axis": np.array(1)})
    assert_miss(PruneHeads(), graph, "heads cannot be followed through CumSum, at CumSum")


# -- what is asked for -----------------------------------------------------------------------------


def test_importance_from_a_file(tmp_path: Path):
    by_json, by_npz = tmp_path / "heads.json", tmp_path / "heads.npz"
    by_json.write_text(json.dumps({"model": [0.4, 0.1, 0.2, 0.3]}))
    np.savez(by_npz, model=np.array([0.4, 0.1, 0.2, 0.3]))
    texts = set()
    for options in (
        {"importance": str(by_json), "keep": 2},
        {"importance": str(by_npz), "keep": 2},
        {"heads": (("model", (1, 2)),)},
    ):
        graph = plain()
        (record,) = run_passes(graph, [PruneHeads(**options)])
        assert record.findings[0].became == "2 of 4 heads"
        texts.add(graph_text(graph))
    assert len(texts) == 1


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"model": [[1]]}', '{"model": ["a"]}'])
def test_a_file_that_is_no_importance_is_refused(tmp_path: Path, content: str):
    (tmp_path / "heads.json").write_text(content)
    pass_ = PruneHeads(importance=str(tmp_path / "heads.json"), keep=2)
    with pytest.raises((GraphError, UsageError), match="importance of"):
        run_passes(plain(), [pass_])


def test_of_equally_important_heads_the_first_stay():
    assert least_important({"a": [1, 1, 1], "b": [0, 2]}, 2) == {"a": (2,)}
    assert least_important({"a": [1, 3, 2]}, 0) == {"a": (0, 2)}


# -- whole models, and any shape -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("encode", {"kind": "encoder", "positions": "alibi", "head_pruning": True}),
        pytest.param(
            "forward", {"kind": "decoder", "positions": "relative"}, marks=pytest.mark.slow
        ),
        ("decode", {"kind": "decoder", "positions": "rotary", "head_pruning": True}),
        pytest.param(
            "decode", {"kind": "encoder-decoder", "positions": "absolute"}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_pruned_graph_is_the_graph_of_the_pruned_model(traced, name: str, settings: dict):
    whole = traced(name, **settings)
    graph = whole.graph.clone()
    run_passes(graph, canonical())
    gone = [(1,), (0, 3), (2,), (1, 2)]
    sites = [n.metadata_props[MODULE_KEY] for n in graph.graph if n.op_type == "Attention"]
    removed = dict(zip(sites, gone, strict=False))
    pass_ = PruneHeads(heads=tuple(removed.items()), boundary=True)
    (record,) = run_passes(graph, [pass_])
    assert all(finding.became for finding in record.findings)
    check_graph(graph, "prune-heads")

    model = copy.deepcopy(whole.model)
    model.prune_heads(
        {
            path.replace(".blocks", "").replace("_attention", ""): heads
            for path, heads in removed.items()
        }
    )
    program = next(p for p in programs(model) if p.name == name)
    assert [list(v.shape)[1] for v in graph.graph.inputs] == [s.shape[1] for s in program.inputs]
    matrices = [
        v for n, v in graph.graph.initializers.items() if ".weight" in n and len(v.shape) > 1
    ]
    most = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert sum(int(np.prod(v.shape.numpy())) for v in matrices) <= most
    runner = GraphRunner(graph)
    for reference in whole.references[:4]:
        expected = reference_for(program, reference.case)
        found = runner.run(expected.feeds)
        for output, deviation in deviations(found, expected.outputs).items():
            # Two layers of attention and feed-forward, each of some dozen roundings.
            assert deviation.rms < 4e-6, (output, deviation)


@settings(max_examples=25, deadline=None)
@given(
    keys=st.integers(1, 4),
    group=st.integers(1, 3),
    size=st.sampled_from([2, 4]),
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    mask=st.sampled_from(["none", "causal", "shared", "by head", "by batch and head"]),
    gate=st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5, -2.0]), min_size=12, max_size=12),
    dtype=st.sampled_from(["float", "float16"]),
    seed=st.integers(0, 99),
)
def test_any_gate_on_any_heads_keeps_the_numbers(
    keys, group, size, batch, length, mask, gate, dtype, seed
):
    heads = keys * group
    width, key_width = heads * size, keys * size
    masks = {
        "shared": (1, 1, length, length),
        "by head": (1, heads, length, length),
        "by batch and head": (batch, heads, length, length),
    }
    causal = "<is_causal=1>" if mask == "causal" else ""
    masked = ", mask" if mask in masks else ""
    shape = ",".join(map(str, masks.get(mask, (1, 1, 1, 1))))
    text = f"""g ({dtype}[B,T,{C}] x, {dtype}[{C},{width}] wq, {dtype}[{C},{key_width}] wk,
          {dtype}[{C},{key_width}] wv, {dtype}[{width},{C}] wo, {dtype}[1,{heads},1,1] gate,
          {dtype}[{shape}] mask, int64[4] split, int64[4] split_key, int64[3] merge)
       => ({dtype}[B,T,{C}] y) {{
      q0 = MatMul(x, wq)
      q2 = Reshape(q0, split)
      q = Transpose<perm=[0,2,1,3]>(q2)
      k0 = MatMul(x, wk)
      k2 = Reshape(k0, split_key)
      k = Transpose<perm=[0,2,1,3]>(k2)
      v0 = MatMul(x, wv)
      v2 = Reshape(v0, split_key)
      v = Transpose<perm=[0,2,1,3]>(v2)
      a = Attention{causal}(q, k, v{masked})
      c = Mul(a, gate)
      m0 = Transpose<perm=[0,2,1,3]>(c)
      m = Reshape(m0, merge)
      y = MatMul(m, wo)
    }}"""
    constants = weights(
        seed, wq=(C, width), wk=(C, key_width), wv=(C, key_width), wo=(width, C),
        mask=masks.get(mask, (1, 1, 1, 1)),
    )  # fmt: skip
    constants["gate"] = np.array(gate[:heads], np.float32).reshape(1, heads, 1, 1)
    kind = np.float16 if dtype == "float16" else np.float32
    constants = {n: array.astype(kind) for n, array in constants.items()}
    graph = graph_with(text, constants | shapes(heads, keys, size))
    x = np.random.default_rng(seed).standard_normal((batch, length, C)).astype(kind)
    expected = GraphRunner(graph.clone()).run({"x": x})
    (record,) = run_passes(graph, [PruneHeads()])
    check_graph(graph, "prune-heads")
    found = GraphRunner(graph).run({"x": x})
    # A half has 11 bits, and the gate is rounded into the weight: a few roundings of each output.
    bound = 8 * 2.0**-11 if dtype == "float16" else EXACT.rms
    assert deviations(found, expected)["y"].rms <= bound
    open_heads = sum(number != 0 for number in gate[:heads])
    (finding,) = record.findings
    if open_heads:
        (attention,) = (node for node in graph.graph if node.op_type == "Attention")
        left = attention.inputs[0].shape[1]
        assert open_heads <= left <= heads
        if group == 1:
            assert left == open_heads
    else:
        assert finding.reason == "all of its heads would go"
    assert not run_passes(graph, [PruneHeads()])[0].modified
