"""Biases and tables of positions in fewer numbers: the graphs, the reasons, and the numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from position_bias_graphs import (
    ADDED,
    ALIBI,
    CLAMPED,
    LOGARITHMS,
    REPLACED,
    SEEN,
    SLOPES,
    TABLE,
    TOKENS,
    assert_same,
    attention,
    became,
    feeds,
)

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import declare_ranges
from omnigraph.passes.base import run_passes
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import (
    assert_miss,
    assert_pass,
    graph_from_text,
    graph_with_weights,
    tolerance_of,
)

# -- one row per head ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [REPLACED, ADDED])
def test_causal_alibi_becomes_a_row(form: str):
    before = attention(f"{ALIBI} {SEEN} {form}")
    after = attention(
        f"""less = Sub(one, S) from_last = Range(less, one, one) {SEEN}
        f = Cast<to=1>(from_last) o = Constant<value_float=-1.0>()
        bias = Mul(f, slopes) {form}""",
        slopes=-SLOPES,
    )
    declare_ranges(before, {"S": (1, 32)})
    whole = before.clone()
    assert became(before) == "one row per head, 2 heads, for up to 32 keys"
    (row,) = (value for n in before.graph if n.op_type == "Mul" for value in n.outputs)
    assert list(row.shape or ())[:2] == [2, 1]
    (hide,) = (value for n in before.graph if n.op_type == "Where" for value in n.outputs)
    assert {hide, row} == set(next(n for n in before.graph if hide in n.inputs).inputs)
    for T, S in ((1, 1), (1, 9), (7, 7), (5, 32), (32, 32)):
        assert_same(whole, before, feeds(T, S, hidden=S // 3))
        assert_same(after, before, feeds(T, S, hidden=S // 3))


def test_a_row_is_not_made_where_it_would_round_the_scores():
    before = attention(f"{ALIBI} {SEEN} {ADDED}")
    assert became(before).startswith("miss: a distance times a slope")  # of any length
    longer = attention(f"{ALIBI} {SEEN} {ADDED}")
    declare_ranges(longer, {"S": (1, 4096)})
    assert became(longer).startswith("miss: a distance times a slope")


def test_a_row_is_not_made_before_a_cap_of_the_scores():
    capped = attention(f"{ALIBI} {SEEN} {ADDED}", attribute="<softcap=5.0>")
    declare_ranges(capped, {"S": (1, 32)})
    assert became(capped).startswith("miss")


def test_a_row_is_not_made_of_a_mask_that_is_read_elsewhere():
    graph = attention(f"{ALIBI} {SEEN} {ADDED}")
    mask = next(v for n in graph.graph for v in n.outputs if v.name == "mask")
    graph.graph.outputs.append(mask)
    declare_ranges(graph, {"S": (1, 32)})
    assert became(graph).startswith("miss")


def test_symmetric_alibi_is_no_row():
    graph = attention(f"{ALIBI} {TOKENS} {ADDED}")
    declare_ranges(graph, {"S": (1, 32)})
    assert_miss(FoldPositionBias(), graph, "one product for each score already")


def test_a_row_stays():
    graph = attention(f"f = Cast<to=1>(j) bias = Mul(f, slopes) {SEEN} {REPLACED}")
    assert_miss(FoldPositionBias(), graph, "one row per head already")


def test_a_mask_without_a_bias_has_nothing_to_fold():
    graph = attention(f"{SEEN} mask = Where(seen, none, least)")
    assert_miss(FoldPositionBias(), graph, "adds no bias of positions alone")


def test_a_moderate_number_does_not_hide_enough_for_a_row():
    graph = attention(
        f"{ALIBI} {SEEN} few = Constant<value_float=-10000.0>() mask = Where(seen, bias, few)"
    )
    declare_ranges(graph, {"S": (1, 32)})
    assert_miss(FoldPositionBias(), graph, "one product for each score already")


# -- a distance times a slope ----------------------------------------------------------------------


@pytest.mark.parametrize("seen", [SEEN, TOKENS])
def test_slopes_are_taken_out_of_the_mask(seen: str):
    before = attention(f"{ALIBI} {seen} {REPLACED}")
    whole = before.clone()
    assert became(before) == "the distance of visible keys times a slope, 2 heads"
    assert [node.op_type for node in before.graph][-3:] == ["Constant", "Mul", "Attention"]
    (where,) = (node for node in before.graph if node.op_type == "Where")
    assert list(where.inputs[0].shape or ())[1] == 1, "the heads come after what is hidden"
    for T, S in ((1, 1), (1, 9), (7, 7), (5, 40), (64, 64)):
        hidden = S if seen == TOKENS else 0  # a token sees itself, or no row is hidden whole
        assert_same(whole, before, feeds(T, S, hidden=hidden))


def test_a_row_that_is_hidden_whole_is_the_mean_of_all_keys():
    """As in torch; onnxruntime alone takes the least number itself, and no other, for -inf."""
    before = attention(f"{ALIBI} {SEEN} {REPLACED}")
    became(before)
    inputs = feeds(5, 5, hidden=5)
    found = GraphRunner(before).run(inputs)["y"][-1]
    expected = np.broadcast_to(inputs["v"][-1].mean(axis=1, keepdims=True), found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_slopes_of_a_whole_graph():
    body = """g (float[B,2,T,8] q, int64[B,T] m, float[2,1,1] slopes) => (float[B,2,T,8] y)
        {{ zero = Constant<value_int=0>() one = Constant<value_int=1>()
        ts = Shape<start=2, end=3>(q) n = Squeeze(ts) p = Range(zero, n, one)
        first = Constant<value_ints=[0]>() second = Constant<value_ints=[1]>()
        i = Unsqueeze(p, second) j = Unsqueeze(p, first) t = Cast<to=9>(m)
        at = Constant<value_ints=[1,2]>() seen = Unsqueeze(t, at)
        {mask} y = Attention(q, q, q, mask) }}"""
    least = "least = Constant<value_float=-3.4028234663852886e38>()"
    before = graph_with_weights(body.format(mask=f"{ALIBI} {least} {REPLACED}"), slopes=SLOPES)
    after = graph_from_text(
        """g (float[B,2,T,8] q, int64[B,T] m) => (float[B,2,T,8] y)
        { t = Cast<to=9>(m) at = Constant<value_ints=[1,2]>() seen = Unsqueeze(t, at)
        ts = Shape<start=2, end=3>(q) n = Squeeze(ts) zero = Constant<value = int64 {0}>()
        one = Constant<value = int64 {1}>() p = Range(zero, n, one)
        second = Constant<value = int64[1] {1}>() i = Unsqueeze(p, second)
        ts2 = Shape<start=2, end=3>(q) n2 = Squeeze(ts2) p2 = Range(zero, n2, one)
        first = Constant<value = int64[1] {0}>() j = Unsqueeze(p2, first)
        d = Sub(i, j) a = Abs(d) f = Cast<to=1>(a)
        far = Constant<value = float {3.4028234663852886e38}>() w = Where(seen, f, far)
        s = Constant<value = float[2,1,1] {-0.25, -0.0625}>() mask = Mul(w, s)
        y = Attention(q, q, q, mask) }"""
    )
    inputs = {k: v for k, v in feeds(5, 5, hidden=4).items() if k in ("q", "m")}
    assert_pass(FoldPositionBias(), before, after, inputs)


def test_a_slope_of_zero_hides_nothing():
    graph = attention(f"{ALIBI} {SEEN} {REPLACED}", slopes=SLOPES * np.float32([[[0]], [[1]]]))
    assert_miss(FoldPositionBias(), graph, "a slope of 0")


# -- any bias, any sizes ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([ALIBI, CLAMPED, LOGARITHMS]),
    st.sampled_from([SEEN, TOKENS]),
    st.sampled_from([REPLACED, ADDED]),
    st.sampled_from([None, 32, 4096]),
    st.booleans(),
    st.integers(1, 20),
    st.integers(0, 12),
    st.integers(1, 3),
)
def test_numbers_are_the_same_for_any_bias_mask_and_size(
    bias: str, seen: str, form: str, most: int | None, rows: bool, T: int, past: int, batch: int
):
    before = attention(f"{bias} {seen} {form}", buckets=TABLE)
    whole = before.clone()
    if most is not None:
        declare_ranges(before, {"S": (1, most)})
    run_passes(before, (FoldPositionBias(rows_of_products=rows),))
    check_graph(before, "fold-position-bias")
    assert_same(whole, before, feeds(T, T + past, batch, seed=T, hidden=(T + past) // 2))


@pytest.mark.parametrize(
    ("program", "options", "expected"),
    [
        ("forward", {"kind": "encoder", "positions": "alibi"}, "distance of visible keys"),
        ("decode", {"kind": "decoder", "positions": "relative"}, "a table of 257 distances"),
        pytest.param(
            "decode",
            {"kind": "decoder", "positions": "alibi"},
            "distance of visible keys",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "forward",
            {"kind": "encoder-decoder", "positions": "relative"},
            "a table of 257 distances",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_omninet_in_torchs_numbers(traced, program: str, options: dict[str, str], expected: str):
    from omnigraph.contract.tolerance import output_scales

    found = traced(program, **options)
    graph = found.graph.clone()
    run_passes(graph, canonical())
    tolerance = tolerance_of(graph)
    (record,) = run_passes(graph, (FoldPositionBias(),))
    biases = [f for f in record.findings if f.site.startswith("Attention")]
    assert biases and all(expected in (f.became or "") for f in biases)
    run_passes(graph, canonical())
    assert not run_passes(graph, (FoldPositionBias(),))[0].modified
    runner, scales = GraphRunner(graph), output_scales([r.outputs for r in found.references])
    for reference in found.references:
        outputs = runner.run(reference.feeds)
        for name, deviation in deviations(outputs, reference.outputs, scales).items():
            assert deviation.within(tolerance), (name, deviation, reference.case)
