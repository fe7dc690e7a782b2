"""Attention that is written out becomes one Attention, whatever its spelling, at equal numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from attention_spellings import (
    ATTENTION,
    END,
    OUT,
    PASS,
    PRODUCT,
    QKV,
    RNG,
    SCALE,
    attention,
    floats,
    fuse,
    graph,
    tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.tolerance import Tolerance
from omnigraph.graph import Graph
from omnigraph.testing import assert_miss, assert_pass

# Scales and the softcap ---------------------------------------------------------------------------

TURNED = "kt = Transpose<perm=[0,1,3,2]>(k)"
SCALES = {
    "mul": f"{PRODUCT} m = Mul(s, scale)",
    "mul, number first": f"{PRODUCT} m = Mul(scale, s)",
    "div": f"{PRODUCT} m = Div(s, root)",
    "queries": f"{TURNED} a = Mul(q, scale) m = MatMul(a, kt)",
    "keys": "a = Mul(k, scale) kt = Transpose<perm=[0,1,3,2]>(a) m = MatMul(q, kt)",
    "turned keys": f"{TURNED} a = Div(kt, root) m = MatMul(q, a)",
    "both": f"{TURNED} f = Sqrt(scale) a = Mul(q, f) b = Mul(kt, f) m = MatMul(a, b)",
    "root of the head size": f"""{PRODUCT} n = Shape<start=3, end=4>(q) d = Cast<to=1>(n)
        r = Sqrt(d) m = Div(s, r)""",
    "head size by Gather": f"""{PRODUCT} n = Shape(q) d = Gather(n, last) e = Cast<to=1>(d)
        r = Sqrt(e) f = Reciprocal(r) m = Mul(s, f)""",
    "head size by Slice": f"""{PRODUCT} n = Shape(q)
        big = Constant<value_ints=[9223372036854775807]>()
        d = Slice(n, last, big) e = Cast<to=1>(d) h = Constant<value = float {{0.5}}>()
        r = Pow(e, h) m = Div(s, r)""",
}


@pytest.mark.parametrize("spelling", SCALES)
def test_scales(spelling: str) -> None:
    found = graph(QKV, f"{SCALES[spelling]} {END}")
    assert fuse(found, tensors()) == ["Attention, 4 heads"]
    assert [node.op_type for node in found.graph] == ["Attention"]
    assert attention(found).attributes.get_float("scale") == pytest.approx(SCALE, rel=1e-6)


def test_no_scale_is_a_scale_of_one() -> None:
    before = graph(QKV, f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)")
    assert_pass(PASS, before, graph(QKV, f"{ATTENTION}(q, k, v)"), tensors())


def test_a_scale_after_the_mask_scales_the_mask() -> None:
    before = graph(f"{QKV}, float[T,S] a", f"{PRODUCT} n = Add(s, a) m = Mul(n, two) {END}")
    after = graph(f"{QKV}, float[T,S] a", "b = Mul(a, two) y = Attention<scale=2.0>(q, k, v, b)")
    assert_pass(PASS, before, after, {**tensors(), "a": floats(5, 7)})


@pytest.mark.parametrize(
    ("body", "attributes"),
    [
        ("a = Div(s, two) b = Tanh(a) m = Mul(b, two)", "scale=1.0, softcap=2.0"),
        ("c = Mul(s, two) b = Tanh(c) m = Mul(two, b)", "scale=4.0, softcap=2.0"),
        ("c = Div(s, root) a = Div(c, root) m = Tanh(a)", "scale=0.125, softcap=1.0"),
    ],
)
def test_softcap(body: str, attributes: str) -> None:
    before = graph(
        f"{QKV}, float[T,S] z", f"{PRODUCT} {body} n = Add(m, z) w = Softmax(n) y = MatMul(w, v)"
    )
    after = graph(f"{QKV}, float[T,S] z", f"y = Attention<{attributes}>(q, k, v, z)")
    assert_pass(PASS, before, after, {**tensors(), "z": floats(5, 7)})


# Precisions, gates, and what is read elsewhere ----------------------------------------------------

HALF = Tolerance(rms=2.0**-9, peak=2.0**-6)  # a few roundings of fp16, whose unit is 2**-11


@pytest.mark.parametrize("mask", [False, True])
def test_a_softmax_in_fp32_inside_fp16(mask: bool) -> None:
    body = f"{PRODUCT} {'n = Where(a, s, hm)' if mask else 'n = Identity(s)'} m = Cast<to=1>(n)"
    body = f"hm = Cast<to=10>(minus) {body} w = Softmax(m) h = Cast<to=10>(w)"
    inputs = QKV.replace("float", "float16") + (", bool[T,S] a" if mask else "")
    found = graph(inputs, f"{body} y = MatMul(h, v)", OUT.replace("float", "float16"))
    feeds = {name: array.astype(np.float16) for name, array in tensors().items()}
    if mask:
        feeds["a"] = RNG.random((5, 7)) > 0.3
        feeds["a"][:, 0] = True
    fuse(found, feeds, HALF)
    assert attention(found).attributes.get_int("softmax_precision") == 1


def test_a_gate_on_the_shares_becomes_one_on_the_output() -> None:
    inputs = f"{QKV}, float[4,1,1] a"
    before = graph(inputs, f"{PRODUCT} w = Softmax(s) g = Mul(w, a) y = MatMul(g, v)")
    after = graph(inputs, "o = Attention<scale=1.0>(q, k, v) y = Mul(o, a)")
    assert_pass(PASS, before, after, {**tensors(), "a": floats(4, 1, 1)})


def test_a_gate_on_the_output_stays() -> None:
    inputs = f"{QKV}, float[4,1,1] a"
    before = graph(inputs, f"{PRODUCT} w = Softmax(s) o = MatMul(w, v) y = Mul(o, a)")
    after = graph(inputs, "o = Attention<scale=1.0>(q, k, v) y = Mul(o, a)")
    assert_pass(PASS, before, after, {**tensors(), "a": floats(4, 1, 1)})


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        ("t = Mul(s, two) m = Add(t, a) w = Softmax(m) y = MatMul(w, v) z = Identity(t)", 0),
        ("m = Add(s, a) w = Softmax(m) y = MatMul(w, v) z = Identity(m)", 2),
        ("m = Add(s, a) w = Softmax(m) y = MatMul(w, v) z = Identity(w)", 3),
    ],
)
def test_scores_that_are_read_elsewhere_are_given(body: str, mode: int) -> None:
    found = graph(f"{QKV}, float[T,S] a", f"{PRODUCT} {body}", f"{OUT}, float[B,4,T,S] z")
    fuse(found, {**tensors(), "a": floats(5, 7)})
    assert attention(found).attributes.get_int("qk_matmul_output_mode") == mode


def test_shares_of_three_axes_that_are_read_elsewhere_are_given() -> None:
    inputs = "float[B,T,8] q, float[B,S,8] k, float[B,S,8] v"
    body = "kt = Transpose<perm=[0,2,1]>(k) m = MatMul(q, kt)"
    outputs = "float[B,T,8] y, float[B,T,S] z"
    found = graph(inputs, f"{body} {END} z = Identity(w)", outputs)
    fuse(found, {name: array[:, 0] for name, array in tensors().items()})
    assert attention(found).attributes.get_int("qk_matmul_output_mode") == 3


def test_dropout_and_the_largest_of_a_row_change_nothing() -> None:
    body = f"""{PRODUCT} x = ReduceMax(s, last) m = Sub(s, x) w = Softmax(m) d = Dropout(w)
        y = MatMul(d, v)"""
    assert_pass(PASS, graph(QKV, body), graph(QKV, f"{ATTENTION}(q, k, v)"), tensors())


# What is left alone -------------------------------------------------------------------------------

A = f"{QKV}, float[T,S] a"
MISSES = {
    "the scale is not a constant": (f"{QKV}, float[1] a", f"{PRODUCT} m = Mul(s, a) {END}"),
    "the softmax is not of a product": (A, "w = Softmax(a) y = MatMul(w, v)"),
    "the scale is not a positive number": (QKV, f"{PRODUCT} m = Mul(s, few) {END}"),
    "a mask stands inside the softcap": (A, f"{PRODUCT} n = Add(s, a) m = Tanh(n) {END}"),
    "the scores have two softcaps": (QKV, f"{PRODUCT} n = Tanh(s) m = Tanh(n) {END}"),
    "which does not hide": (f"{QKV}, bool[T,S] a", f"{PRODUCT} m = Where(a, s, zero) {END}"),
    "replaced by what is not a constant": (
        f"{QKV}, bool[T,S] a, float[T,S] b",
        f"{PRODUCT} m = Where(a, s, b) {END}",
    ),
    "scores are replaced by -10000 beside another mask": (
        f"{QKV}, bool[T,S] c, float[T,S] a",
        f"{PRODUCT} n = Where(c, s, few) m = Add(n, a) {END}",
    ),
    "attention weights are zeroed by a condition that is not the mask's": (
        f"{QKV}, bool[T,S] a",
        f"{PRODUCT} w = Softmax(s) g = Where(a, w, zero) y = MatMul(g, v)",
    ),
    "replaced by what is not zero": (
        f"{QKV}, bool[T,S] a",
        f"{PRODUCT} w = Softmax(s) g = Where(a, w, two) y = MatMul(g, v)",
    ),
    "what may differ from key to key": (
        A,
        f"{PRODUCT} w = Softmax(s) g = Mul(w, a) y = MatMul(g, v)",
    ),
    "dropped at random": (
        QKV,
        f"""{PRODUCT} w = Softmax(s) r = Constant<value = float {{0.5}}>()
        t = Constant<value = bool {{1}}>() d = Dropout(w, r, t) y = MatMul(d, v)""",
    ),
    "not known to be of one batch": (
        "float[B,4,T,8] q, float[1,4,S,8] k, float[B,4,S,8] v",
        f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)",
    ),
    "values have other heads than queries": (
        "float[B,4,T,8] q, float[B,4,S,8] k, float[B,H,S,8] v",
        f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)",
    ),
    "keys and values have other heads": (
        "float[B,4,T,8] q, float[B,1,S,8] k, float[B,2,S,8] v",
        f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)",
    ),
    "the mask has a size that queries and keys have not": (
        "float[1,4,T,8] q, float[1,4,S,8] k, float[1,4,S,8] v, float[B,1,T,S] a",
        f"{PRODUCT} m = Add(s, a) {END}",
    ),
    "a factor has 5 axes": (
        "float[B,2,2,T,8] q, float[B,2,1,8,S] k, float[B,2,1,S,8] v",
        "s = MatMul(q, k) w = Softmax(s) y = MatMul(w, v)",
    ),
}


@pytest.mark.parametrize("reason", MISSES)
def test_what_is_left_alone_has_a_reason(reason: str) -> None:
    inputs, body = MISSES[reason]
    outputs = "float[B,2,2,T,8] y" if "5 axes" in reason else OUT
    assert_miss(PASS, graph(inputs, body, outputs), reason)


def test_scores_read_twice_elsewhere_are_left_alone() -> None:
    body = f"{PRODUCT} m = Mul(s, two) {END} z = Identity(s) x = Identity(w)"
    outputs = f"{OUT}, float[B,4,T,S] z, float[B,4,T,S] x"
    assert_miss(PASS, graph(QKV, body, outputs), "read elsewhere too")


def test_finite_numbers_in_fp16_are_left_alone() -> None:
    """In fp16 a score changes the sum with the lowest number, so that hidden rows would differ."""
    hidden = "big = Constant<value = float {-65504.0}>() hm = Cast<to=10>(big) m = Where(a, s, hm)"
    body = f"{PRODUCT} {hidden} {END}"
    found = graph(
        QKV.replace("float", "float16") + ", bool[T,S] a", body, OUT.replace("float", "float16")
    )
    assert_miss(PASS, found, "scores in fp16 are replaced by a finite number")


def test_other_softmaxes_are_no_sites() -> None:
    found = graph(QKV, "y = Softmax<axis=-1>(q)")
    assert_pass(PASS, found, None, tensors())
    found = graph(
        QKV,
        "w = Softmax<axis=1>(q) vt = Transpose<perm=[0,1,3,2]>(v) y = MatMul(w, vt)",
        "float[B,4,T,S] y",
    )
    assert_pass(PASS, found, None, tensors())


# Any sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spelling:
    """One way to write attention of 4 heads, and the sizes of its tensors.

    Args:
        heads: of keys and values; 2 are repeated to 4.
        mask: "a" is added, "b" is a condition, "" is none.
        shape: which of the mask's axes [B, 4, T, S] are whole; the others are 1.
        guard: whether rows that are NaN become zero.
        scale: the number that scores are multiplied by, if any.
        cap: whether scores have a softcap.
    """

    batch: int
    queries: int
    keys: int
    heads: int
    mask: str
    shape: tuple[bool, ...]
    guard: bool
    scale: str
    cap: bool

    @property
    def axes(self) -> list[str]:
        """The axes of the mask."""
        whole = zip(["B", "4", "T", "S"], self.shape, strict=True)
        return [name if kept else "1" for name, kept in whole]

    def graph(self) -> Graph:
        inputs = f"float[B,4,T,8] q, float[B,{self.heads},S,8] k, float[B,{self.heads},S,8] v"
        if self.mask:
            kind = "float" if self.mask == "a" else "bool"
            inputs += f", {kind}[{','.join(self.axes)}] mask"
        if self.heads == 2:  # repeated to four by a Gather
            four = """j = Constant<value_ints=[0,0,1,1]>()
                k4 = Gather<axis=1>(k, j) v4 = Gather<axis=1>(v, j)"""
        else:
            four = "k4 = Identity(k) v4 = Identity(v)"
        masked = {"": "Identity(s)", "a": "Add(s, mask)", "b": "Where(mask, s, minus)"}
        body = [
            four,
            "kt = Transpose<perm=[0,1,3,2]>(k4) s0 = MatMul(q, kt)",
            f"s1 = Mul(s0, {self.scale})" if self.scale else "s1 = Identity(s0)",
            "t = Tanh(s1) s = Mul(t, two)" if self.cap else "s = Identity(s1)",
            f"m = {masked[self.mask]} w = Softmax(m)",
            "i = IsNaN(w) g = Where(i, zero, w)" if self.guard else "g = Identity(w)",
            "y = MatMul(g, v4)",
        ]
        return graph(inputs, " ".join(body))

    def feeds(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        made = {
            name: rng.standard_normal((self.batch, heads, length, 8)).astype(np.float32)
            for name, heads, length in (
                ("q", 4, self.queries),
                ("k", self.heads, self.keys),
                ("v", self.heads, self.keys),
            )
        }
        if self.mask:
            sizes = {"B": self.batch, "4": 4, "T": self.queries, "S": self.keys, "1": 1}
            array = rng.random([sizes[name] for name in self.axes])
            made["mask"] = array.astype(np.float32) if self.mask == "a" else array > 0.5
        return made


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    spelling=st.builds(
        Spelling,
        batch=st.integers(1, 3),
        queries=st.integers(1, 6),
        keys=st.integers(1, 6),
        heads=st.sampled_from([1, 2, 4]),
        mask=st.sampled_from(["", "a", "b"]),
        shape=st.tuples(*[st.booleans()] * 4),
        guard=st.booleans(),
        scale=st.sampled_from(["scale", "two", ""]),
        cap=st.booleans(),
    ),
    seed=st.integers(0, 2**16),
)
def test_any_sizes(spelling: Spelling, seed: int) -> None:
    """Every mask shape that broadcasts, with rows that are hidden wholly, at every small size."""
    became = fuse(spelling.graph(), spelling.feeds(seed))
    assert became[0].startswith("Attention, 4 heads")
    assert ("2 of keys" in became[0]) == (spelling.heads == 2)
