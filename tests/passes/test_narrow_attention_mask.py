"""Masks that hide the same keys from each head."""

from __future__ import annotations

import numpy as np
import pytest

from omnigraph.passes.narrow_attention_mask import NarrowAttentionMask
from omnigraph.testing import assert_pass, graph_from_text

TEXT = """
g (float[2, 4, T, 8] q, float[2, 4, S, 8] k, float[2, 4, S, 8] v, {inputs}) => (float[2, 4, T, 8] y)
{{
    zero = Constant<value = float {{0.0}}>()
    hidden = Constant<value = float {{-1e30}}>()
    {mask}
    y = Attention(q, k, v, mask)
}}
"""
SEEN = "bool[2, 1, T, S] seen, int64[4] shape"
EXPANDED = """
    zeros = Expand(zero, shape)
    mask = Where(seen, zeros, hidden)
"""


def graph_of(mask: str, inputs: str = SEEN):
    graph = graph_from_text(TEXT.format(mask=mask, inputs=inputs))
    made = next(node for node in graph.graph if node.op_type == "Attention").inputs[3]
    sizes = graph.graph.inputs[0].shape, graph.graph.inputs[1].shape
    made.shape = type(sizes[0])([2, 4, sizes[0][2], sizes[1][2]])
    return graph


def feeds(axis: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    shapes = {"q": (2, 4, 3, 8), "k": (2, 4, 5, 8), "v": (2, 4, 5, 8)}
    drawn = {name: draw.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    seen = draw.random((2, axis, 3, 5)) < 0.7
    return {**drawn, "seen": seen, "shape": np.array([1, 4, 3, 5])}


def test_a_choice_of_two_numbers_is_made_once_for_all_heads():
    after = graph_of("mask = Where(seen, zero, hidden)")
    assert_pass(NarrowAttentionMask(), graph_of(EXPANDED), after, feeds())


def test_either_number_may_be_expanded():
    mask = "filled = Expand(hidden, shape)\n    mask = Where(seen, zero, filled)"
    after = graph_of("mask = Where(seen, zero, hidden)")
    assert_pass(NarrowAttentionMask(), graph_of(mask), after, feeds())


@pytest.mark.parametrize(
    ("mask", "inputs"),
    [
        ("mask = Where(seen, bias, hidden)", f"{SEEN}, float[1, 4, T, S] bias"),
        ("zeros = Expand(bias, shape)\n    mask = Where(seen, zeros, hidden)", f"{SEEN}, float b"),
        (EXPANDED, "bool[2, 4, T, S] seen, int64[4] shape"),
        (EXPANDED, "bool[2, 1, 1, S] seen, int64[4] shape"),
        (EXPANDED, "bool[T, S] seen, int64[4] shape"),
    ],
    ids=["a bias", "a number that is an input", "heads", "queries", "fewer axes"],
)
def test_other_masks_are_left_alone(mask: str, inputs: str):
    graph = graph_of(mask.replace("Expand(bias", "Expand(b"), inputs)
    assert not NarrowAttentionMask().apply(graph)
