"""Attention that is written out becomes one Attention, whatever its spelling, at equal numbers."""

from __future__ import annotations

import numpy as np
import pytest
from graph_checks import EXACT, assert_miss, assert_pass, graph_from_text, graph_text
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.passes.legalize_attention_past import LegalizeAttentionPast
from omnigraph.passes.legalize_causal_mask import LegalizeCausalMask

PASS = FuseAttention()
QKV = "float[B,4,T,8] q, float[B,4,S,8] k, float[B,4,S,8] v"
SQUARE = "float[B,4,T,8] q, float[B,4,T,8] k, float[B,4,T,8] v"
OUT = "float[B,4,T,8] y"
SCALE = 8**-0.5
LOWEST = float(np.finfo(np.float32).min)
#: Every body below may use these numbers.
NUMBERS = f"""scale = Constant<value = float {{{SCALE}}}>()
    root = Constant<value = float {{{8**0.5}}}>()  two = Constant<value = float {{2.0}}>()
    zero = Constant<value = float {{0.0}}>()  least = Constant<value = float {{{LOWEST}}}>()
    minus = Constant<value = float {{-inf}}>()  few = Constant<value = float {{-10000.0}}>()
    last = Constant<value_ints = [-1]>()  n1 = Constant<value_ints = [1]>()
    n2 = Constant<value_ints = [2]>()"""
PRODUCT = "kt = Transpose<perm=[0,1,3,2]>(k) s = MatMul(q, kt)"
END = "w = Softmax<axis=-1>(m) y = MatMul(w, v)"
ATTENTION = "y = Attention<scale=1.0>"
RNG = np.random.default_rng(0)


def graph(inputs: str, body: str, outputs: str = OUT) -> Graph:
    """A Graph of a body, with those of the numbers above that it uses."""
    found = graph_from_text(f"g ({inputs}) => ({outputs}) {{ {NUMBERS} {body} }}")
    run_passes(found, (EliminateDeadCode(),))
    return found


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def tensors(
    queries: int = 5, keys: int = 7, batch: int = 2, heads: int = 4
) -> dict[str, np.ndarray]:
    """Queries of 4 heads, keys and values of as many as asked for."""
    keys_and_values = 2, heads, keys, 8
    return {
        "q": floats(2, 4, queries, 8),
        "k": floats(*keys_and_values),
        "v": floats(*keys_and_values),
    }


def conditions(*shape: int) -> np.ndarray:
    """[.., T, S] that hides every key from the second query, and some from the others."""
    visible = RNG.random(shape) > 0.3
    visible[..., 0] = True
    visible[..., 1, :] = False
    return visible


def fuse(found: Graph, feeds: dict[str, np.ndarray], tolerance: Tolerance = EXACT) -> list[str]:
    """What the sites of a Graph became, once its numbers are those of before.

    A row hidden wholly is NaN before, unless it is guarded, and zero after.
    """
    expected = GraphRunner(found.clone()).run(feeds)
    (record,) = run_passes(found, (PASS,))
    assert all(site.became for site in record.findings), [f.reason for f in record.findings]
    check_graph(found, "fuse-attention")
    assert not count_ops(found)["Softmax"]
    assert not run_passes(found, (PASS,))[0].modified
    expected = {name: np.nan_to_num(array) for name, array in expected.items()}
    for name, deviation in deviations(GraphRunner(found).run(feeds), expected).items():
        assert deviation.within(tolerance), (name, deviation)
    return [site.became or "" for site in record.findings]


def attention(found: Graph):
    """The one Attention of a Graph."""
    (node,) = [node for node in found.graph if node.op_type == "Attention"]
    return node


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
SIZES = "n = Shape<start=2, end=3>(q) l = Shape<start=2, end=3>(k) ts = Concat<axis=0>(n, l)"
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


# Heads and layouts --------------------------------------------------------------------------------

GROUPED = "float[B,4,T,8] q, float[B,2,S,8] k, float[B,2,S,8] v"
SHAPES = """b = Shape<start=0, end=1>(k) l = Shape<start=2, end=3>(k)
    h = Constant<value_ints=[4]>() d = Constant<value_ints=[8]>()
    four = Concat<axis=0>(b, h, l, d)"""


def repeated(how: str) -> str:
    """Keys and values of 2 heads made to 4, each twice in a row."""
    parts = [SHAPES]
    for x in "kv":
        if how == "Gather":
            parts.append(
                f"j{x} = Constant<value_ints=[0,0,1,1]>() {x}4 = Gather<axis=1>({x}, j{x})"
            )
            continue
        parts.append(f"{x}u = Unsqueeze({x}, n2)")
        if how == "Expand":
            parts.append(f"s{x} = Concat<axis=0>(b, n2, n2, l, d) {x}e = Expand({x}u, s{x})")
        elif how == "Tile":
            parts.append(f"s{x} = Constant<value_ints=[1,1,2,1,1]>() {x}e = Tile({x}u, s{x})")
        else:
            parts.append(f"{x}e = Concat<axis=2>({x}u, {x}u)")
        parts.append(f"{x}4 = Reshape({x}e, four)")
    return " ".join(parts)


def with_shapes(found: Graph, **shapes: list) -> Graph:
    """A Graph whose values of these names have these shapes, as torch's exporter gives them."""
    import onnx_ir as ir

    for node in found.graph:
        for value in node.outputs:
            if value.name in shapes:
                value.shape = ir.Shape(shapes[value.name])
    return found


FOUR = ["B", 4, "S", 8]
FIVE = ["B", 2, 2, "S", 8]
REPEATED = {"ke": FIVE, "ve": FIVE, "k4": FOUR, "v4": FOUR, "kt": ["B", 4, 8, "S"]}


@pytest.mark.parametrize("how", ["Expand", "Tile", "Concat", "Gather"])
def test_repeated_heads_are_grouped(how: str) -> None:
    body = f"{repeated(how)} kt = Transpose<perm=[0,1,3,2]>(k4) m = MatMul(q, kt)"
    before = graph(GROUPED, f"{body} w = Softmax(m) y = MatMul(w, v4)")
    after = graph(GROUPED, f"{ATTENTION}(q, k, v)")
    assert_pass(PASS, with_shapes(before, **REPEATED), after, tensors(heads=2))


def test_heads_in_another_order_are_not_grouped() -> None:
    body = """j = Constant<value_ints=[0,1,0,1]>()
        k4 = Gather<axis=1>(k, j) v4 = Gather<axis=1>(v, j)
        kt = Transpose<perm=[0,1,3,2]>(k4) m = MatMul(q, kt) w = Softmax(m) y = MatMul(w, v4)"""
    found = graph(GROUPED, body)
    assert fuse(found, tensors(heads=2)) == ["Attention, 4 heads"]
    assert count_ops(found)["Gather"] == 2


def test_one_head_of_keys_for_all() -> None:
    inputs = "float[B,4,T,8] q, float[B,1,S,8] k, float[B,1,S,8] v"
    before = graph(inputs, f"{PRODUCT} w = Softmax(s) y = MatMul(w, v)")
    assert_pass(PASS, before, graph(inputs, f"{ATTENTION}(q, k, v)"), tensors(heads=1))


def test_the_transposes_of_keys_are_absorbed() -> None:
    inputs = "float[B,4,T,8] q, float[B,S,4,8] k, float[B,4,S,8] v"
    before = graph(inputs, f"kt = Transpose<perm=[0,2,3,1]>(k) m = MatMul(q, kt) {END}")
    after = graph(inputs, f"t = Transpose<perm=[0,2,1,3]>(k) {ATTENTION}(q, t, v)")
    feeds = tensors()
    assert_pass(PASS, before, after, {**feeds, "k": feeds["k"].swapaxes(1, 2).copy()})


def test_keys_that_are_stored_turned() -> None:
    inputs = "float[B,4,T,8] q, float[B,4,8,S] k, float[B,4,S,8] v"
    before = graph(inputs, f"m = MatMul(q, k) {END}")
    after = graph(inputs, f"t = Transpose<perm=[0,1,3,2]>(k) {ATTENTION}(q, t, v)")
    feeds = tensors()
    assert_pass(PASS, before, after, {**feeds, "k": feeds["k"].swapaxes(2, 3).copy()})


def test_one_head_of_three_axes() -> None:
    inputs = "float[B,T,8] q, float[B,S,8] k, float[B,S,8] v, bool[B,T,S] a"
    body = "kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) m = Where(a, s, least)"
    found = graph(inputs, f"{body} {END}", "float[B,T,8] y")
    feeds = {name: array[:, 0] for name, array in tensors().items()}
    assert fuse(found, {**feeds, "a": conditions(2, 5, 7)})[0].startswith("Attention, 1 heads")


@pytest.mark.parametrize("split", [False, True])
def test_heads_joined_with_the_batch(split: bool) -> None:
    """BART and BLOOM: products of three axes, and scores of four where the mask is added."""
    body = """tail = Shape<start=2>(q) whole = Concat<axis=0>(last, tail) q3 = Reshape(q, whole)
        ktail = Shape<start=2>(k) kwhole = Concat<axis=0>(last, ktail) k3 = Reshape(k, kwhole)
        v3 = Reshape(v, kwhole) kt = Transpose<perm=[0,2,1]>(k3) p = MatMul(q3, kt)
        s = Mul(p, scale) b4 = Constant<value_ints=[-1, 4]>() t = Shape<start=1>(s)
        full = Concat<axis=0>(b4, t) s4 = Reshape(s, full) m4 = Add(s4, a)
        flat = Concat<axis=0>(last, t) m = Reshape(m4, flat) w = Softmax(m) o = MatMul(w, v3)"""
    end = "ot = Shape<start=2>(q) of = Concat<axis=0>(b4, ot) y = Reshape(o, of)"
    inputs, outputs = f"{QKV}, float[B,1,T,S] a", OUT if split else "float[N,T,8] y"
    found = graph(inputs, f"{body} {end if split else 'y = Identity(o)'}", outputs)
    for name, shape in {
        "q3": ["4*B", "T", 8],
        "k3": ["4*B", "S", 8],
        "v3": ["4*B", "S", 8],
        "kt": ["4*B", 8, "S"],
        "p": ["4*B", "T", "S"],
        "s": ["4*B", "T", "S"],
        "s4": ["B", 4, "T", "S"],
        "m4": ["B", 4, "T", "S"],
        "m": ["4*B", "T", "S"],
        "w": ["4*B", "T", "S"],
        "o": ["4*B", "T", 8],
        "y": ["B", 4, "T", 8] if split else ["4*B", "T", 8],
    }.items():
        with_shapes(found, **{name: shape})
    assert fuse(found, {**tensors(), "a": floats(2, 1, 5, 7)}) == ["Attention, 4 heads, bias"]
    assert attention(found).inputs[0].name == "q"
    assert count_ops(found)["Reshape"] == (0 if split else 1)


@pytest.mark.parametrize("how", ["Split", "Slice", "Gather"])
def test_packed_projections(how: str) -> None:
    parts = {
        "Split": "q0, k0, v0 = Split<axis=-1, num_outputs=3>(x)",
        "Slice": " ".join(
            f"""b{i} = Constant<value_ints=[{i * 8}]>() e{i} = Constant<value_ints=[{i * 8 + 8}]>()
            {x}0 = Slice(x, b{i}, e{i}, last)"""
            for i, x in enumerate("qkv")
        ),
        "Gather": "pack = Constant<value_ints=[0,0,3,8]>() x3 = Reshape(x, pack) "
        + " ".join(
            f"i{i} = Constant<value = int64 {{{i}}}>() {x}0 = Gather<axis=2>(x3, i{i})"
            for i, x in enumerate("qkv")
        ),
    }
    heads = "shape = Constant<value_ints=[0,0,2,4]>() " + " ".join(
        f"{x}1 = Reshape({x}0, shape) {x} = Transpose<perm=[0,2,1,3]>({x}1)" for x in "qkv"
    )
    body = f"{parts[how]} {heads} {PRODUCT} m = Mul(s, scale) {END}"
    found = graph("float[B,T,24] x", body, "float[B,2,T,4] y")
    assert fuse(found, {"x": floats(2, 5, 24)}) == ["Attention, 2 heads"]
    assert count_ops(found)["Transpose"] == 3


# The past -----------------------------------------------------------------------------------------

PAST = (
    "float[B,4,T,8] q, float[B,4,P,8] pk, float[B,4,P,8] pv, float[B,4,T,8] nk, float[B,4,T,8] nv"
)
JOINED = "k = Concat<axis=2>(pk, nk) v = Concat<axis=-2>(pv, nv)"
PRESENTS = f"{OUT}, float[B,4,S,8] k, float[B,4,S,8] v"


def past_tensors(past: int, queries: int, batch: int = 2) -> dict[str, np.ndarray]:
    sizes = {"q": queries, "pk": past, "pv": past, "nk": queries, "nv": queries}
    return {name: floats(batch, 4, size, 8) for name, size in sizes.items()}


def test_a_past_is_absorbed() -> None:
    before = graph(PAST, f"{JOINED} {PRODUCT} w = Softmax(s) y = MatMul(w, v)", PRESENTS)
    after = graph(PAST, "y, k, v = Attention<scale=1.0>(q, nk, nv, , pk, pv)", PRESENTS)
    assert_pass(PASS, before, after, past_tensors(3, 5))


def test_a_past_can_be_left_outside() -> None:
    before = graph(PAST, f"{JOINED} {PRODUCT} w = Softmax(s) y = MatMul(w, v)", PRESENTS)
    after = graph(PAST, f"{JOINED} {ATTENTION}(q, k, v)", PRESENTS)
    assert_pass(FuseAttention(absorb_past=False), before, after, past_tensors(3, 5))


def test_a_past_that_the_mask_is_measured_by_stays_outside() -> None:
    body = f"""{JOINED} {PRODUCT} {SIZES} e = Expand(a, ts) m = Add(s, e)
        w = Softmax(m) y = MatMul(w, v)"""
    found = graph(f"{PAST}, float[1,1] a", body, PRESENTS)
    fuse(found, {**past_tensors(3, 5), "a": floats(1, 1)})
    assert count_ops(found)["Concat"] >= 2 and len(attention(found).outputs) == 1


@pytest.mark.parametrize(("past", "queries"), [(3, 5), (0, 5), (3, 1), (0, 1)])
def test_a_causal_mask_past_a_past_is_the_flag(past: int, queries: int) -> None:
    """And what the other targets make of it, a mask and a Concat, has the same numbers."""
    body = f"""{JOINED} {PRODUCT} z = Constant<value = int64 {{0}}>()
        one = Constant<value = int64 {{1}}>() ps = Shape<start=2, end=3>(pk) p = Squeeze(ps)
        ns = Shape<start=2, end=3>(nk) n = Squeeze(ns) total = Add(p, n) j = Range(z, total, one)
        r = Range(z, n, one) rp = Add(r, p) i = Unsqueeze(rp, n1) a = LessOrEqual(j, i)
        m = Where(a, s, least) w = Softmax(m) y = MatMul(w, v)"""
    feeds = past_tensors(past, queries, batch=1)
    found = graph(PAST, body, PRESENTS)
    expected = GraphRunner(found.clone()).run(feeds)
    assert fuse(found, feeds) == ["Attention, 4 heads, causal, past"]
    assert attention(found).attributes.get_int("is_causal") == 1
    run_passes(found, (LegalizeCausalMask(), LegalizeAttentionPast()))
    assert count_ops(found)["Concat"] == 2
    for name, deviation in deviations(GraphRunner(found).run(feeds), expected).items():
        assert deviation.within(EXACT), (name, deviation)


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
    "shares are zeroed by a condition that is not the mask's": (
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


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4]),
    mask=st.sampled_from(["", "a", "b"]),
    guard=st.booleans(),
    shape=st.tuples(*[st.booleans()] * 4),
    scale=st.sampled_from(["scale", "two", ""]),
    cap=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_sizes(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    mask: str,
    guard: bool,
    shape: tuple[bool, ...],
    scale: str,
    cap: bool,
    seed: int,
) -> None:
    """Every mask shape that broadcasts, with rows that are hidden wholly, at every small size."""
    rng = np.random.default_rng(seed)
    names = [n if kept else "1" for n, kept in zip(["B", "4", "T", "S"], shape, strict=True)]
    sizes = {"B": batch, "4": 4, "T": queries, "S": keys, "1": 1}
    inputs = f"float[B,4,T,8] q, float[B,{heads},S,8] k, float[B,{heads},S,8] v"
    if heads == 2:  # repeated to four by a Gather
        k4 = """j = Constant<value_ints=[0,0,1,1]>()
            k4 = Gather<axis=1>(k, j) v4 = Gather<axis=1>(v, j)"""
    else:
        k4 = "k4 = Identity(k) v4 = Identity(v)"
    body = [k4, "kt = Transpose<perm=[0,1,3,2]>(k4) s0 = MatMul(q, kt)"]
    body.append(f"s1 = Mul(s0, {scale})" if scale else "s1 = Identity(s0)")
    body.append("t = Tanh(s1) s = Mul(t, two)" if cap else "s = Identity(s1)")
    feeds = {
        "q": rng.standard_normal((batch, 4, queries, 8)).astype(np.float32),
        "k": rng.standard_normal((batch, heads, keys, 8)).astype(np.float32),
        "v": rng.standard_normal((batch, heads, keys, 8)).astype(np.float32),
    }
    if mask:
        inputs += f", {'float' if mask == 'a' else 'bool'}[{','.join(names)}] mask"
        array = rng.random([sizes[n] for n in names])
        feeds["mask"] = array.astype(np.float32) if mask == "a" else array > 0.5
        body.append("m = Add(s, mask)" if mask == "a" else "m = Where(mask, s, minus)")
    else:
        body.append("m = Identity(s)")
    body.append("w = Softmax(m)")
    body.append("i = IsNaN(w) g = Where(i, zero, w)" if guard else "g = Identity(w)")
    found = graph(inputs, " ".join([*body, "y = MatMul(g, v4)"]))
    became = fuse(found, feeds)
    assert became[0].startswith("Attention, 4 heads")
    assert ("2 of keys" in became[0]) == (heads == 2)
