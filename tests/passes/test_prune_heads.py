"""Heads that give nothing, or are not wanted, leave the weights; all others keep their numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from head_pruning_graphs import (
    FEEDS,
    GATE,
    C,
    D,
    H,
    graph_with,
    layer,
    layer_weights,
    plain,
    shapes,
    weights,
)

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.errors import GraphError, UsageError
from omnigraph.graph import MODULE_KEY
from omnigraph.passes.analysis.pruning.importance import least_important
from omnigraph.passes.base import run_passes
from omnigraph.passes.prune_heads import PruneHeads
from omnigraph.testing import EXACT, assert_miss, assert_pass, graph_text


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


# -- near misses -----------------------------------------------------------------------------------


def test_what_gives_something_stays():
    assert_miss(PruneHeads(), plain(), "each of its heads gives something")


def test_not_all_heads_go():
    zero = np.zeros((H * D, C), np.float32)
    assert_miss(PruneHeads(), plain(wo=zero), "all of its heads would go")


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
