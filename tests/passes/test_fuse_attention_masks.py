"""Masks of written-out attention: added, as conditions, causal; rows that are hidden wholly."""

from __future__ import annotations

import numpy as np
import pytest
from attention_spellings import (
    ATTENTION,
    END,
    PASS,
    PRODUCT,
    QKV,
    SIZES,
    SQUARE,
    attention,
    conditions,
    floats,
    fuse,
    graph,
    tensors,
)

from omnigraph.testing import assert_pass, graph_text

# Masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "body", "after"),
    [
        ("float[B,1,T,S] a", "m = Add(s, a)", f"{ATTENTION}(q, k, v, a)"),
        (
            "float[4,T,S] a",
            "m = Add(s, a)",
            f"i = Constant<value = int64[1] {{0}}>() b = Unsqueeze(a, i) {ATTENTION}(q, k, v, b)",
        ),
        ("float[T,S] a", "m = Add(a, s)", f"{ATTENTION}(q, k, v, a)"),
        ("bool[B,1,T,S] a", "m = Where(a, s, minus)", f"{ATTENTION}(q, k, v, a)"),
        ("bool[B,1,T,S] a", "m = Where(a, minus, s)", f"b = Not(a) {ATTENTION}(q, k, v, b)"),
        (
            "bool[B,1,T,S] a, bool[T,S] c",
            "n = Where(a, s, minus) m = Where(c, n, minus)",
            f"b = And(a, c) {ATTENTION}(q, k, v, b)",
        ),
        (
            "bool[B,1,T,S] c, float[T,S] a",
            "n = Add(s, a) m = Where(c, n, minus)",
            f"b = Where(c, a, minus) {ATTENTION}(q, k, v, b)",
        ),
    ],
    ids=["added", "of heads", "first", "condition", "hiding", "two", "bias and condition"],
)
def test_masks(mask: str, body: str, after: str) -> None:
    inputs = f"{QKV}, {mask}"
    feeds = tensors()
    for part in mask.replace(", ", ";").split(";"):
        shape = (2, 1, 5, 7) if "[B" in part else (4, 5, 7) if "[4" in part else (5, 7)
        array = floats(*shape)
        if "bool" in part:  # every query sees, or does not see, some key
            array = (array > 0) ^ np.eye(5, 7, dtype=bool)
            array[..., 0], array[..., -1] = "minus, s" not in body, "minus, s" in body
        feeds[part[-1]] = array
    assert_pass(PASS, graph(inputs, f"{PRODUCT} {body} {END}"), graph(inputs, after), feeds)


def test_a_mask_taken_away_is_added_negated() -> None:
    found = graph(f"{QKV}, float[T,S] a", f"{PRODUCT} m = Sub(s, a) {END}")
    fuse(found, {**tensors(), "a": floats(5, 7)})
    assert [n.op_type for n in found.graph if n.op_type != "Constant"] == ["Mul", "Attention"]


def test_a_mask_of_keys_gets_a_row_for_each_query() -> None:
    found = graph(f"{QKV}, bool[B,1,1,S] a", f"{PRODUCT} m = Where(a, s, minus) {END}")
    mask = np.ones((2, 1, 1, 7), bool)
    mask[1, ..., :3] = False
    fuse(found, {**tensors(), "a": mask})
    assert [n.op_type for n in found.graph][-2:] == ["Expand", "Attention"]


def test_a_mask_of_queries_is_no_short_mask_of_keys() -> None:
    """The standard reads a last axis that is shorter than the keys as hidden keys."""
    found = graph(f"{QKV}, float[B,1,T,1] a", f"{PRODUCT} m = Add(s, a) {END}")
    fuse(found, {**tensors(), "a": floats(2, 1, 5, 1)})


FILLED = {
    "lowest": "m = Where(a, s, least)",
    "lowest, added": "n = Where(a, zero, least) m = Add(s, n)",
    "one less the mask, times the lowest": """f = Cast<to=1>(a) o = Constant<value = float {1.0}>()
        i = Sub(o, f) n = Mul(i, least) m = Add(s, n)""",
    "a few thousand": "m = Where(a, s, few)",
    "a few thousand, added": "n = Where(a, zero, few) m = Add(s, n)",
    "lowest, twice": "n = Where(a, s, least) o = Where(a, zero, least) m = Add(n, o)",
}


@pytest.mark.parametrize("spelling", FILLED)
def test_rows_hidden_by_finite_numbers_keep_their_numbers(spelling: str) -> None:
    found = graph(f"{QKV}, bool[B,1,T,S] a", f"{PRODUCT} {FILLED[spelling]} {END}")
    fuse(found, {**tensors(), "a": conditions(2, 1, 5, 7)})


GUARDED = {
    "none": "m = Where(a, s, minus) w = Softmax(m) g = Identity(w)",
    "NaN": "m = Where(a, s, minus) w = Softmax(m) i = IsNaN(w) g = Where(i, zero, w)",
    "same mask": "m = Where(a, s, least) w = Softmax(m) g = Where(a, w, zero)",
    "mask turned": "n = Not(a) m = Where(n, minus, s) w = Softmax(m) g = Where(n, zero, w)",
    "largest of the scores": """m = Where(a, s, minus) w = Softmax(m)
        x = ReduceMax(m, last) e = Equal(x, minus) g = Where(e, zero, w)""",
    "any score": """m = Where(a, s, minus) w = Softmax(m) e = Equal(m, minus) n = Not(e)
        x = ReduceMax(n, last) r = Not(x) g = Where(r, zero, w)""",
}


@pytest.mark.parametrize("guard", GUARDED)
def test_rows_hidden_by_infinity_are_zero(guard: str) -> None:
    found = graph(f"{QKV}, bool[B,1,T,S] a", f"{PRODUCT} {GUARDED[guard]} y = MatMul(g, v)")
    assert fuse(found, {**tensors(), "a": conditions(2, 1, 5, 7)})
    mask = attention(found).inputs[3]
    assert mask.dtype.name == "BOOL"


# Causal masks and windows -------------------------------------------------------------------------

POSITIONS = """n = Shape<start=2, end=3>(q) t = Squeeze(n) z = Constant<value = int64 {0}>()
    one = Constant<value = int64 {1}>() r = Range(z, t, one) i = Unsqueeze(r, n1)"""

CAUSAL = {
    "compared": f"{POSITIONS} a = LessOrEqual(r, i) m = Where(a, s, minus)",
    "compared, added": f"{POSITIONS} a = Less(i, r) b = Where(a, least, zero) m = Add(s, b)",
    "triangle": f"""{SIZES} e = ConstantOfShape<value = bool[1] {{1}}>(ts) a = Trilu<upper=0>(e)
        m = Where(a, s, least)""",
    "upper triangle": f"""{SIZES} e = Expand(minus, ts) k1 = Constant<value = int64 {{1}}>()
        a = Trilu<upper=1>(e, k1) m = Add(s, a)""",
}


@pytest.mark.parametrize("spelling", CAUSAL)
def test_causal_masks_of_as_many_queries_as_keys_are_the_flag(spelling: str) -> None:
    found = graph(SQUARE, f"{PRODUCT} {CAUSAL[spelling]} {END}")
    assert fuse(found, tensors(6, 6)) == ["Attention, 4 heads, causal"]
    assert graph_text(found).endswith("{'is_causal': '1', 'scale': '1.0'}")
    assert len(found.graph) == 1


@pytest.mark.parametrize("spelling", ["triangle", "compared"])
def test_causal_masks_of_other_lengths_stay_masks(spelling: str) -> None:
    if spelling == "compared":
        body = f"""{POSITIONS} l = Shape<start=2, end=3>(k) ls = Squeeze(l) c = Range(z, ls, one)
            a = LessOrEqual(c, i) m = Where(a, s, minus)"""
    else:
        body = CAUSAL[spelling]
    found = graph(QKV, f"{PRODUCT} {body} {END}")
    assert fuse(found, tensors(5, 7)) == ["Attention, 4 heads, causal"]
    assert "is_causal" not in attention(found).attributes


def test_a_mask_of_the_keys_before_is_not_the_flag() -> None:
    body = f"{POSITIONS} a = Less(r, i) m = Where(a, s, minus)"
    found = graph(SQUARE, f"{PRODUCT} {body} {END}")
    fuse(found, tensors(6, 6))
    assert "is_causal" not in attention(found).attributes


def test_a_window_is_named() -> None:
    body = f"""{POSITIONS} a = LessOrEqual(r, i) d = Sub(i, r) c = Constant<value = int64 {{3}}>()
        b = Less(d, c) ab = And(a, b) m = Where(ab, s, minus)"""
    found = graph(SQUARE, f"{PRODUCT} {body} {END}")
    assert fuse(found, tensors(6, 6)) == ["Attention, 4 heads, causal, window of 3"]
