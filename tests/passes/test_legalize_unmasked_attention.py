"""Attention without a mask gets one that hides nothing, one for all of the same lengths."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.graph import count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_unmasked_attention import LegalizeUnmaskedAttention
from omnigraph.testing import assert_pass, graph_from_text

PASS = LegalizeUnmaskedAttention()
SHAPES = {"q": (2, 4, 5, 8), "k": (2, 4, 19, 8), "v": (2, 4, 19, 8)}
FEEDS = {
    name: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name, shape in SHAPES.items()
}
TENSORS = "float[B,4,T,8] q, float[B,4,S,8] k, float[B,4,S,8] v"
MASK = """
    true = Constant<value = bool {1}>()
    t = Shape<start = 2, end = 3>(q)
    s = Shape<start = 2, end = 3>(k)
    ts = Concat<axis = 0>(t, s)
    all = Expand(true, ts)
"""


def test_a_mask_is_made() -> None:
    assert_pass(
        PASS,
        graph_from_text(f"g ({TENSORS}) => (float[B,4,T,8] y) {{ y = Attention(q, k, v) }}"),
        graph_from_text(
            f"g ({TENSORS}) => (float[B,4,T,8] y) {{ {MASK} y = Attention(q, k, v, all) }}"
        ),
        FEEDS,
    )


def test_a_mask_is_shared_by_equal_lengths() -> None:
    text = """g (%s) => (float[B,4,T,8] y) {
        %s
        a = Attention<scale = 0.5>(q, k, v%s)
        y = Attention(a, v, k%s)
    }"""
    assert_pass(
        PASS,
        graph_from_text(text % (TENSORS, "", "", "")),
        graph_from_text(text % (TENSORS, MASK, ", all", ", all")),
        FEEDS,
    )


def test_other_lengths_have_a_mask_of_their_own() -> None:
    graph = graph_from_text(
        f"g ({TENSORS}) => (float[B,4,T,8] y) {{ a = Attention(k, k, v) y = Attention(q, a, v) }}"
    )
    run_passes(graph, (PASS,))
    assert count_ops(graph)["Expand"] == 2


def test_unknown_lengths_share_nothing() -> None:
    graph = graph_from_text(
        f"g ({TENSORS}) => (float[B,4,T,8] y) {{ a = Attention(q, k, v) y = Attention(a, k, v) }}"
    )
    graph.graph[0].inputs[1].shape = None
    run_passes(graph, (PASS,))
    assert count_ops(graph)["Expand"] == 2


@pytest.mark.parametrize(
    ("inputs", "call", "feeds"),
    [
        ("bool[T,S] m", "Attention(q, k, v, m)", {"m": np.ones((5, 19), bool)}),
        ("float[T] unused", "Attention<is_causal = 1>(q, k, v)", {"unused": np.ones(5, "f4")}),
        (
            "float[B,4,P,8] a, float[B,4,P,8] b",
            "Attention(q, k, v, , a, b)",
            {"a": FEEDS["k"][:, :, :3], "b": FEEDS["v"][:, :, :3]},
        ),
    ],
    ids=["a mask", "causal", "a past"],
)
def test_left_alone(inputs: str, call: str, feeds: dict[str, np.ndarray]) -> None:
    outputs = "y" if "a, b" not in call else "y, present_key, present_value"
    graph = graph_from_text(
        f"g ({TENSORS}, {inputs}) => (float[B,4,T,8] y) {{ {outputs} = {call} }}"
    )
    assert_pass(PASS, graph, None, {**FEEDS, **feeds})


def test_three_axes_are_left_alone() -> None:
    graph = graph_from_text(
        "g (float[B,T,32] q) => (float[B,T,32] y) "
        "{ y = Attention<q_num_heads = 4, kv_num_heads = 4>(q, q, q) }"
    )
    assert_pass(PASS, graph, None, {"q": np.ones((2, 5, 32), np.float32)})
