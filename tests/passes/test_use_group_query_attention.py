"""Causal attention by onnxruntime's own op gives the numbers of the standard's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviation
from omnigraph.graph import Graph, declare_ranges
from omnigraph.lowering import Lowered, find_target
from omnigraph.lowering.onnx.kernels import CONTRIB_OPS
from omnigraph.passes.base import run_passes
from omnigraph.passes.use_group_query_attention import UseGroupQueryAttention
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

RNG = np.random.default_rng(0)
MASKS = {
    "": "",
    "bool": ", bool[B,1,T,T] m",
    "bool heads": ", bool[1,4,T,T] m",
    "float": ", float[B,4,T,T] m",
}


def causal(kind: str = "", groups: int = 2, extra: str = "", tokens: str = "T") -> Graph:
    mask = ", m" if MASKS[kind] else ""
    text = (
        f"g (float[B,T,32] q, float[B,T,{8 * groups}] k, float[B,T,{8 * groups}] v{MASKS[kind]})"
        f" => (float[B,T,32] y) {{ y = Attention<is_causal=1, q_num_heads=4, "
        f"kv_num_heads={groups}{extra}>(q, k, v{mask}) }}"
    )
    return graph_from_text(
        text.replace("[B,T,", f"[B,{tokens},").replace(",T,T]", f",{tokens},{tokens}]")
    )


def feeds(kind: str, batch: int, tokens: int, groups: int = 2) -> dict[str, np.ndarray]:
    shapes = {"q": 32, "k": 8 * groups, "v": 8 * groups}
    made = {
        n: RNG.standard_normal((batch, tokens, width)).astype(np.float32)
        for n, width in shapes.items()
    }
    if kind == "bool":
        made["m"] = RNG.random((batch, 1, tokens, tokens)) < 0.7
        made["m"][0, 0, tokens // 2] = False  # a row that sees nothing
    elif kind == "bool heads":
        made["m"] = RNG.random((1, 4, tokens, tokens)) < 0.7
    elif kind == "float":
        made["m"] = RNG.standard_normal((batch, 4, tokens, tokens)).astype(np.float32)
        made["m"][0, :, 0, 0] = -np.inf  # the first row of a causal attention sees only itself
    return made


@given(
    kind=st.sampled_from(list(MASKS)),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 70),
    groups=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from(["", ", scale=0.3"]),
)
@settings(max_examples=30, deadline=None)
def test_any_mask_gives_the_same_numbers(kind, batch, tokens, groups, scale):
    graph = causal(kind, groups, scale)
    if kind and tokens == 1:
        assert_miss(UseGroupQueryAttention(shortest=0), graph, "one token alone")
        return
    declare_ranges(graph, {"T": (2 if kind else 1, None)})
    given_ = feeds(kind, batch, tokens, groups)
    expected = GraphRunner(graph.clone()).run(given_)["y"]
    (record,) = run_passes(graph, (UseGroupQueryAttention(shortest=0),))
    assert record.modified
    check_graph(graph, "test")
    found = GraphRunner(graph).run(given_)["y"]
    assert deviation(found, expected).rms < 1e-6
    assert not run_passes(graph, (UseGroupQueryAttention(shortest=0),))[0].modified


@pytest.mark.parametrize("tokens", [1024, 1100])
def test_long_attention_by_blocks(tokens: int):
    graph = causal("bool", tokens=str(tokens))
    given_ = feeds("bool", 2, tokens)
    expected = GraphRunner(graph.clone()).run(given_)["y"]
    assert run_passes(graph, (UseGroupQueryAttention(),))[0].modified
    found = GraphRunner(graph).run(given_)["y"]
    assert deviation(found, expected).rms < 2e-6
    assert not found[0, tokens // 2].any()


def test_heads_apart_are_joined_on_the_way():
    graph = graph_from_text(
        """g (float[B,T,32] q) => (float[B,T,32] y)
        { hs = Constant<value_ints=[0,0,4,8]>() cs = Constant<value_ints=[0,0,32]>()
          r = Reshape(q, hs) t = Transpose<perm=[0,2,1,3]>(r)
          a = Attention<is_causal=1>(t, t, t)
          at = Transpose<perm=[0,2,1,3]>(a) y = Reshape(at, cs) }"""
    )
    x = {"q": RNG.standard_normal((2, 9, 32)).astype(np.float32)}
    expected = GraphRunner(graph.clone()).run(x)["y"]
    assert run_passes(graph, (UseGroupQueryAttention(shortest=0),))[0].modified
    assert not [n for n in graph.graph if n.op_type in ("Transpose", "Attention")]
    assert deviation(GraphRunner(graph).run(x)["y"], expected).rms < 1e-6


def test_a_declared_range_says_how_many_tokens_there_are():
    short = causal()
    assert_miss(UseGroupQueryAttention(), short, "it may have 0 tokens, and pays from 1024 on")
    long = causal()
    declare_ranges(long, {"T": (2048, None)})
    assert run_passes(long, (UseGroupQueryAttention(),))[0].modified


def test_misses_say_why():
    pass_ = UseGroupQueryAttention(shortest=0)
    assert_miss(pass_, causal(extra=", softcap=2.0"), "it has a softcap")
    text = """g (float[B,T,32] q, float[B,S,32] k) => (float[B,T,32] y)
        { y = Attention<is_causal=1, q_num_heads=4, kv_num_heads=4>(q, k, k) }"""
    assert_miss(pass_, graph_from_text(text), "not known to be equally many")
    text = """g (float[B,T,32] q, float[T,T] m) => (float[B,T,32] y)
        { y = Attention<is_causal=1, q_num_heads=4, kv_num_heads=4>(q, q, q, m) }"""
    assert_miss(pass_, graph_from_text(text), "its mask is not of four axes")
    plain = graph_from_text(text.replace("<is_causal=1, ", "<"))
    assert_pass(
        pass_, plain, None, {"q": np.ones((1, 2, 32), np.float32), "m": np.eye(2, dtype=np.float32)}
    )


def test_other_targets_refuse_it_and_the_onnx_target_takes_no_other():
    graph = causal()
    run_passes(graph, (UseGroupQueryAttention(shortest=0),))
    (node,) = (n for n in graph.graph if n.domain)
    assert node.op_type in CONTRIB_OPS
    assert find_target("onnx").supports(node, "fp32") is None
    for name in ("openvino", "tensorrt"):
        assert "com.microsoft" in (find_target(name).supports(node, "fp16") or "")
    node.op_type = "SkipLayerNormalization"
    assert "SkipLayerNormalization" in (find_target("onnx").supports(node, "fp32") or "")


def test_the_emitted_file_imports_the_domain_and_runs(tmp_path: Path):
    graph = causal("bool", tokens="1024")
    given_ = feeds("bool", 1, 1024)
    expected = GraphRunner(graph.clone()).run(given_)["y"]
    target = find_target("onnx")
    run_passes(graph, target.pipeline("fp32"))
    target.check_nodes("forward", graph, "fp32")
    program = Lowered("forward", graph, (), (), {})
    files = target.emit([program], tmp_path, precision="fp32", options={}).files["forward"]
    model = onnx.load(tmp_path / files["model"])
    assert {o.domain: o.version for o in model.opset_import}["com.microsoft"] == 1
    session = onnxruntime.InferenceSession(str(tmp_path / files["model"]))
    (found,) = session.run(None, given_)
    assert deviation(found, expected).rms < 2e-6
