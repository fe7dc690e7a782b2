"""What masks mean, in the spellings of OmniNet, of Hugging Face models and of plain ONNX."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.passes.analysis.attention.mask import MaskMeaning, difference, meaning, separate
from omnigraph.passes.analysis.index import Length, Linear, NotClosed
from omnigraph.testing import graph_from_text, store_weights

PAST = Linear(0, ((Length("past"), 1),))
#: Queries qi [T, 1] after a past, keys kj [1, S], for past P, T queries and S = P + T keys.
POSITIONS = """zero = Constant<value_int=0>() one = Constant<value_int=1>()
    first = Constant<value_ints=[0]>() second = Constant<value_ints=[1]>()
    middle = Constant<value_ints=[1,2]>() front = Constant<value_ints=[0,1]>()
    three = Constant<value_int=3>()
    ps = Shape<start=0, end=1>(k) ts = Shape<start=1, end=2>(q)
    P = Squeeze(ps) T = Squeeze(ts) S = Add(P, T)
    qr = Range(P, S, one) kr = Range(zero, S, one)
    qi = Unsqueeze(qr, second) kj = Unsqueeze(kr, first)"""
LEAST = "least = Constant<value_float=-3.4028234663852886e38>() none = Constant<value_float=0.0>()"


def mask(body: str, kind: str = "bool") -> MaskMeaning:
    """The meaning of ``y``, of positions, tokens m [B, past + sequence], slopes [4, 1, 1]."""
    graph = graph_from_text(
        f"""g (float[past] k, float[B,sequence] q, int64[B,total] m, float[4,1,1] slopes)
        => ({kind} y) {{ {POSITIONS} {LEAST} {body} }}"""
    )
    tokens = next(value for value in graph.graph.inputs if value.name == "m")
    assert tokens.shape is not None
    tokens.shape = ir.Shape([tokens.shape[0], "past + sequence"])
    slopes = np.array([-0.5, -0.25, -0.125, -0.0625], np.float32)
    store_weights(graph, {"slopes": slopes.reshape(4, 1, 1)})
    output = graph.graph.outputs[0]
    output.shape = None
    return meaning(output)


def texts(found: MaskMeaning) -> list[str]:
    return [predicate.text for predicate in found.visible]


CAUSAL = "c = LessOrEqual(kj, qi)"
TOKENS = "t = Cast<to=9>(m) tokens = Unsqueeze(t, middle)"
ALIBI = "d = Sub(kj, qi) a = Abs(d) f = Cast<to=1>(a) bias = Mul(f, slopes)"


def test_causal_is_aligned_as_the_graph_aligns_it():
    after_past = mask(f"{CAUSAL} y = Unsqueeze(c, front)")
    assert after_past.right == PAST and after_past.is_causal(PAST)
    assert not after_past.is_causal(Linear(0))
    from_the_front = mask(
        "r = Range(zero, T, one) rows = Unsqueeze(r, second) c = LessOrEqual(kj, rows)"
        " y = Unsqueeze(c, front)"
    )
    assert from_the_front.is_causal(Linear(0)) and not from_the_front.is_causal(PAST)


def test_a_causal_mask_with_more_in_it_is_not_only_causal():
    assert not mask(f"{CAUSAL} {TOKENS} y = And(c, tokens)").is_causal(PAST)
    window = mask(f"{CAUSAL} s = Sub(qi, three) w = Greater(kj, s) y = And(c, w)")
    assert window.right == PAST and window.left == Linear(2) - PAST
    assert not window.is_causal(PAST)


def test_a_window_to_both_sides():
    found = mask("d = Sub(kj, qi) a = Abs(d) y = Less(a, three)")
    assert found.right == PAST + 2 and found.left == Linear(2) - PAST
    assert found.positional == () and found.by_data == ()


def test_padding_and_self_are_told_from_positions():
    found = mask(f"{CAUSAL} {TOKENS} same = Equal(kj, qi) seen = Or(tokens, same) y = And(seen, c)")
    assert found.right == PAST
    assert [p.text for p in found.by_data] == ["(i - j + past == 0) or (not (m[b, j] == 0))"]
    assert not found.is_positional


def test_padding_looked_up_by_batch_and_key_as_transformers_does():
    found = mask(
        f"""batch = Shape<start=0, end=1>(m) count = Squeeze(batch) br = Range(zero, count, one)
        third = Constant<value_ints=[1,2,3]>() last = Constant<value_ints=[-1]>()
        b = Unsqueeze(br, third) j0 = Unsqueeze(kr, front) j1 = Unsqueeze(j0, first)
        big = Max(b, j1) shape = Shape(big) be = Expand(b, shape) je = Expand(j1, shape)
        bu = Unsqueeze(be, last) ju = Unsqueeze(je, last) place = Concat<axis=-1>(bu, ju)
        t = Cast<to=9>(m) tokens = GatherND(t, place) {CAUSAL} y = And(c, tokens)"""
    )
    assert texts(found) == ["i - j + past >= 0", "not (m[b, j] == 0)"]


def test_blocks_are_positional_and_no_edge():
    found = mask(
        f"""size = Constant<value_int=4>() bi = Div(qi, size) bj = Div(kj, size) d = Sub(bi, bj)
        a = Abs(d) near = LessOrEqual(a, one) lead = Less(bj, one) seen = Or(near, lead) {CAUSAL}
        y = And(seen, c)"""
    )
    assert found.right == PAST and len(found.positional) == 1 and found.left is None


@pytest.mark.parametrize("hides", [-3.4028234663852886e38, float("-inf"), -10000.0])
def test_what_a_hidden_score_gets(hides: float):
    number = f"h = Constant<value_float={hides}>()".replace("inf", "1e999")
    if hides == float("-inf"):
        number = "big = Constant<value_float=-3e38>() h = Add(big, big)"
    whole = mask(f"{CAUSAL} {number} y = Where(c, none, h)", "float")
    assert whole.hidden == pytest.approx(hides) and whole.bias == () and whole.right == PAST
    denied = mask(f"{CAUSAL} n = Not(c) {number} y = Where(n, h, none)", "float")
    assert denied.right == PAST and denied.hidden == pytest.approx(hides)


def test_one_less_the_mask_times_the_least_number_hides():
    found = mask(
        f"{CAUSAL} f = Cast<to=1>(c) unit = Constant<value_float=1.0>() o = Sub(unit, f)"
        " y = Mul(o, least)",
        "float",
    )
    assert found.right == PAST and found.hidden is not None and found.bias == ()


def test_a_small_number_is_a_bias():
    found = mask(
        f"{CAUSAL} little = Constant<value_float=-5.0>() y = Where(c, none, little)", "float"
    )
    assert found.hidden is None and found.visible == () and len(found.bias) == 1


def test_a_bias_in_the_place_of_the_hidden_and_beside_it():
    replaced = mask(f"{CAUSAL} {ALIBI} y = Where(c, bias, least)", "float")
    added = mask(f"{CAUSAL} {ALIBI} h = Where(c, none, least) y = Add(bias, h)", "float")
    assert replaced.replaces and not added.replaces
    assert texts(replaced) == texts(added) == ["i - j + past >= 0"]
    for (bias,) in (replaced.bias, added.bias):
        assert bias.text == "Mul(Cast:FLOAT(Abs(i - j + past)), slopes[h, 0, 0])"


def test_a_causal_slope_is_of_the_key_and_of_the_query():
    found = mask(f"{CAUSAL} {ALIBI} y = Where(c, bias, least)", "float")
    parts = separate(found.bias[0], found.visible)
    assert parts is not None
    assert [part.text for part in parts] == [
        "Mul(Cast:FLOAT(-j), slopes[h, 0, 0])",
        "Mul(Cast:FLOAT(i + past), slopes[h, 0, 0])",
    ]
    assert separate(found.bias[0]) is None  # keys after the query are as far as those before it


def test_only_functions_of_the_difference_are_its_functions():
    found = mask(f"{ALIBI} y = Unsqueeze(bias, first)", "float")
    moved = difference(found.bias[0])
    assert moved is not None and moved.text == "Mul(Cast:FLOAT(Abs(d - past)), slopes[h, 0, 0])"
    other = mask("d = Add(kj, qi) f = Cast<to=1>(d) y = Mul(f, slopes)", "float")
    assert difference(other.bias[0]) is None
    blocks = mask("e = Div(kj, three) d = Sub(e, qi) f = Cast<to=1>(d) y = Mul(f, slopes)", "float")
    assert difference(blocks.bias[0]) is None


def test_a_mask_whose_sizes_do_not_fit_is_refused():
    graph = graph_from_text(
        """g (bool[1,1,T,S] m, bool[1,1,T,R] n) => (bool[1,1,T,S] y) { y = And(m, n) }"""
    )
    with pytest.raises(NotClosed, match="a size"):
        meaning(graph.graph.outputs[0])
