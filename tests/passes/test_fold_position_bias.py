"""Biases and tables of positions in fewer numbers: the graphs, the reasons, and the numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from graph_checks import EXACT, assert_miss, assert_pass, graph_from_text
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph, declare_ranges
from omnigraph.passes.analysis.attention.mask import meaning
from omnigraph.passes.analysis.position.toeplitz import Toeplitz
from omnigraph.passes.base import run_passes
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.passes.pipelines import canonical

SLOPES = -np.array([0.25, 0.0625], np.float32).reshape(2, 1, 1)
LEAST = "least = Constant<value_float=-3.4028234663852886e38>() none = Constant<value_float=0.0>()"
#: Queries i [T, 1] after a past, keys j [1, S], of T queries and S keys.
POSITIONS = """zero = Constant<value_int=0>() one = Constant<value_int=1>()
    first = Constant<value_ints=[0]>() second = Constant<value_ints=[1]>()
    ts = Shape<start=2, end=3>(q) ss = Shape<start=2, end=3>(k) T = Squeeze(ts) S = Squeeze(ss)
    past = Sub(S, T) queries = Range(past, S, one) keys = Range(zero, S, one)
    i = Unsqueeze(queries, second) j = Unsqueeze(keys, first)"""
ALIBI = "d = Sub(j, i) a = Abs(d) f = Cast<to=1>(a) bias = Mul(f, slopes)"
SEEN = """c = LessOrEqual(j, i) t = Cast<to=9>(m) at = Constant<value_ints=[1,2]>()
    tokens = Unsqueeze(t, at) seen = And(c, tokens)"""
TOKENS = """t = Cast<to=9>(m) at = Constant<value_ints=[1,2]>() tokens = Unsqueeze(t, at)
    same = Equal(j, i) seen = Or(tokens, same)"""
REPLACED = "mask = Where(seen, bias, least)"
ADDED = "hide = Where(seen, none, least) mask = Add(bias, hide)"


def attention(body: str, dims: str = "B,T,S", attribute: str = "", **arrays: np.ndarray) -> Graph:
    """Attention of two heads with a mask of ``q``, ``k``, tokens ``m``, and constants by name."""
    B, T, S = dims.split(",")
    arrays = {name: array for name, array in {"slopes": SLOPES, **arrays}.items() if name in body}
    constants = "".join(
        f", float[{','.join(map(str, array.shape))}] {name}" for name, array in arrays.items()
    )
    graph = graph_from_text(
        f"""g (float[{B},2,{T},8] q, float[{B},2,{S},8] k, float[{B},2,{S},8] v,
            int64[{B},{S}] m{constants}) => (float[{B},2,{T},8] y)
        {{ {POSITIONS} {LEAST} {body} y = Attention{attribute}(q, k, v, mask) }}"""
    )
    for name, array in arrays.items():
        value = next(v for v in graph.graph.inputs if v.name == name)
        graph.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        graph.graph.register_initializer(value)
    return graph


def feeds(T: int, S: int, batch: int = 2, seed: int = 0, hidden: int = 0) -> dict[str, np.ndarray]:
    """Random inputs; the last row of the batch begins with ``hidden`` keys of padding."""
    rng = np.random.default_rng(seed)
    shapes = {"q": (batch, 2, T, 8), "k": (batch, 2, S, 8), "v": (batch, 2, S, 8)}
    made = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    tokens = np.ones((batch, S), np.int64)
    tokens[-1, :hidden] = 0
    return {**made, "m": tokens}


def became(graph: Graph, pass_: FoldPositionBias | None = None) -> str:
    """Fold a Graph in place, check that a second run changes nothing; what its site became."""
    pass_ = pass_ or FoldPositionBias()
    (record,) = run_passes(graph, (pass_,))
    check_graph(graph, pass_.name)
    assert not run_passes(graph, (pass_,))[0].modified
    (finding,) = record.findings
    assert record.modified == (finding.became is not None)
    return finding.became or f"miss: {finding.reason}"


def assert_same(before: Graph, after: Graph, inputs: Mapping[str, np.ndarray]) -> None:
    found, expected = GraphRunner(after).run(inputs), GraphRunner(before).run(inputs)
    for name, deviation in deviations(found, expected).items():
        assert deviation.within(EXACT), (name, deviation)


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
    before = graph_from_text(
        body.format(
            mask=f"{ALIBI} least = Constant<value_float=-3.4028234663852886e38>() {REPLACED}"
        )
    )
    value = next(v for v in before.graph.inputs if v.name == "slopes")
    before.graph.inputs.remove(value)
    value.const_value = ir.tensor(SLOPES, name="slopes")
    before.graph.register_initializer(value)
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


# -- a Toeplitz row --------------------------------------------------------------------------------

TABLE = np.random.default_rng(3).standard_normal((9, 2)).astype(np.float32)
CLAMPED = """low = Constant<value_int=-4>() high = Constant<value_int=4>() d = Sub(j, i)
    e = Clip(d, low, high) p = Add(e, high) g = Gather<axis=0>(buckets, p)
    b = Transpose<perm=[2,0,1]>(g) bias = Unsqueeze(b, first)"""
#: Hugging Face's T5, bidirectional, as torch traces it: 8 buckets either way, up to 20 away.
LOGARITHMS = """d = Sub(j, i) behind = Greater(d, zero) o = Cast<to=7>(behind)
    half = Constant<value_int=4>() offset = Mul(o, half) a = Abs(d)
    exact = Constant<value_int=2>() near = Less(a, exact) f = Cast<to=1>(a)
    fe = Constant<value_float=2.0>() r = Div(f, fe) l = Log(r)
    ratio = Constant<value_float=2.3025851249694824>() n = Div(l, ratio) x = Mul(n, fe)
    w = Cast<to=7>(x) z = Add(w, exact) last = Constant<value_int=3>() far = Min(z, last)
    which = Where(near, a, far) bucket = Add(offset, which) g = Gather<axis=0>(buckets, bucket)
    b = Transpose<perm=[2,0,1]>(g) bias = Unsqueeze(b, first)"""


@pytest.mark.parametrize("bias", [CLAMPED, LOGARITHMS])
@pytest.mark.parametrize("seen", [SEEN, TOKENS])
def test_buckets_become_a_row_for_every_length(bias: str, seen: str):
    before = attention(f"{bias} {seen} {REPLACED}", buckets=TABLE)
    whole = before.clone()
    assert became(before).startswith("a Toeplitz row out of a table of ")
    left = {node.op_type for node in before.graph}
    assert not left & {"Log", "Abs", "Min"}
    for T, S in ((1, 1), (1, 9), (2, 2), (7, 7), (3, 40), (64, 64), (1, 300)):
        assert_same(whole, before, feeds(T, S, hidden=S // 2))


def test_a_table_over_the_budget_is_computed_once_a_call():
    before = attention(f"{CLAMPED} {SEEN} {REPLACED}", buckets=TABLE)
    whole = before.clone()
    assert became(before, FoldPositionBias(budget_bytes=8)).startswith("a Toeplitz row computed")
    assert_same(whole, before, feeds(5, 12))


def test_alibi_becomes_a_row_at_any_length_where_that_is_asked_for():
    pass_ = FoldPositionBias(rows_of_products=True)
    before = attention(f"{ALIBI} {TOKENS} {REPLACED}")
    whole = before.clone()
    assert became(before, pass_) == "a Toeplitz row computed once a call, 2 heads"
    for T, S in ((1, 1), (1, 9), (7, 7), (200, 300)):
        assert_same(whole, before, feeds(T, S, hidden=S // 2))


def test_what_is_no_function_of_the_distance_is_left():
    crooked = "p = Add(j, i) nine = Constant<value_int=9>() e = Mod(p, nine)"
    graph = attention(
        f"""{crooked} g = Gather<axis=0>(buckets, e) b = Transpose<perm=[2,0,1]>(g)
        bias = Unsqueeze(b, first) {SEEN} {REPLACED}""",
        buckets=TABLE,
    )
    assert_miss(FoldPositionBias(), graph, "no function of key less query position")


@pytest.mark.parametrize("both", [True, False])
def test_buckets_of_t5_are_torchs(both: bool):
    """Every bucket of the table is the one that transformers computes, far beyond the last one."""
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    from omnigraph.frontends.module import program_from_module
    from omnigraph.tracing.trace import trace

    class Bias(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(32, 2)
            torch.nn.init.normal_(self.table.weight)

        def forward(self, x):
            places = torch.arange(x.shape[2], device=x.device)
            bucket = t5.T5Attention._relative_position_bucket(
                places[None] - places[:, None], bidirectional=both, num_buckets=32, max_distance=128
            )
            bias = self.table(bucket).permute(2, 0, 1).unsqueeze(0)
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, bias)

    torch.manual_seed(0)
    module = Bias()
    dims = {"x": {0: "batch", 2: "sequence"}}
    graph = trace(program_from_module(module, {"x": torch.randn(2, 2, 9, 8)}, dynamic=dims))
    run_passes(graph, canonical())
    (node,) = (n for n in graph.graph if n.op_type == "Attention")
    mask = node.inputs[3]
    assert mask is not None
    found = Toeplitz.of(meaning(mask).bias[0])
    assert found is not None and found.reach is not None and found.reach <= 128
    far = 4096
    distances = torch.arange(-far, far + 1)
    buckets = t5.T5Attention._relative_position_bucket(
        distances, bidirectional=both, num_buckets=32, max_distance=128
    )
    expected = module.table(buckets).T.detach().numpy()
    np.testing.assert_array_equal(found.table(2, -far, far), expected)
    reach = found.reach
    held = found.table(2, -reach, reach)[:, distances.clamp(-reach, reach).numpy() + reach]
    np.testing.assert_array_equal(held, expected)


# -- static shapes, and tables of positions --------------------------------------------------------


@pytest.mark.parametrize("bias", [ALIBI, LOGARITHMS])
def test_static_sizes_fold_wholly(bias: str):
    before = attention(f"{bias} {SEEN} {REPLACED}", dims="2,6,9", buckets=TABLE)
    whole = before.clone()
    assert became(before) == "a constant, 2 heads, 6 x 9"
    assert not {node.op_type for node in before.graph} & {"Gather", "Log", "Abs", "Mul"}
    assert_same(whole, before, feeds(6, 9, hidden=4))


def test_a_whole_mask_of_static_sizes_is_a_constant():
    before = attention(f"{ALIBI} seen = LessOrEqual(j, i) {REPLACED}", dims="2,6,9")
    whole = before.clone()
    assert became(before) == "a constant, 2 heads, 6 x 9"
    assert [node.op_type for node in before.graph][-1] == "Attention"
    assert "Where" not in {node.op_type for node in before.graph}
    assert_same(whole, before, feeds(6, 9))


def test_a_constant_over_the_budget_is_not_made():
    graph = attention(f"{ALIBI} {SEEN} {REPLACED}", dims="2,6,9")
    assert "constant" not in became(graph, FoldPositionBias(budget_bytes=100))


POSITION_IDS = """g (float[B,sequence,4] x, float[past] p{table}) => (float[B,sequence,4] y)
    {{ zero = Constant<value_int=0>() one = Constant<value_int=1>()
    first = Constant<value_ints=[0]>() ts = Shape<start=1, end=2>(x) ps = Shape(p)
    t = Squeeze(ts) P = Squeeze(ps) n = Add(P, t) {body} }}"""
LOOK_UP = """r = Range(P, n, one) ids = Unsqueeze(r, first) e = Gather<axis=0>(table, ids)
    y = Add(x, e)"""
ANGLES = """r = Range(P, n, one) f = Cast<to=1>(r) at = Constant<value_ints=[0,2]>()
    u = Unsqueeze(f, at) w = Constant<value_floats=[1.0,0.1,0.01,0.001]>() a = Mul(u, w)
    c = Cos(a) y = Add(x, c)"""


def positions(body: str, rows: int = 0) -> Graph:
    table = f", float[{rows},4] table" if rows else ""
    graph = graph_from_text(POSITION_IDS.format(table=table, body=body))
    if rows:
        value = next(v for v in graph.graph.inputs if v.name == "table")
        graph.graph.inputs.remove(value)
        array = np.random.default_rng(1).standard_normal((rows, 4)).astype(np.float32)
        value.const_value = ir.tensor(array, name="table")
        graph.graph.register_initializer(value)
    return graph


def position_feeds(T: int, past: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(2).standard_normal((2, T, 4)).astype(np.float32)
    return {"x": x, "p": np.zeros(past, np.float32)}


def test_learned_positions_become_a_slice_from_the_past_on():
    before = positions(LOOK_UP, rows=20)
    whole = before.clone()
    assert became(before) == "a slice of 'table' from past"
    assert "Gather" not in {node.op_type for node in before.graph}
    for T, past in ((1, 0), (1, 19), (5, 3), (20, 0)):
        assert_same(whole, before, position_feeds(T, past))


def test_positions_beyond_a_table_are_an_error_as_before():
    before = positions(LOOK_UP, rows=20)
    became(before)
    with pytest.raises(Exception, match="does not run"):
        GraphRunner(before).run(position_feeds(4, 18))
    with pytest.raises(Exception, match="does not run"):
        GraphRunner(before).run(position_feeds(1, 20))


def test_cosines_become_a_slice_of_a_table_as_long_as_declared():
    before = positions(ANGLES)
    declare_ranges(before, {"past": (0, 30), "sequence": (1, 34)})
    whole = before.clone()
    assert became(before) == "a slice of a table of 64 positions from past"
    assert not {node.op_type for node in before.graph} & {"Cos", "Mul", "Range"}
    for T, past in ((1, 0), (1, 30), (5, 3), (34, 30)):
        assert_same(whole, before, position_feeds(T, past))


def test_cosines_without_an_end_are_left():
    assert_miss(FoldPositionBias(), positions(ANGLES), "no declared maximum of past + sequence")


def test_cosines_over_the_budget_are_left():
    graph = positions(ANGLES)
    declare_ranges(graph, {"past": (0, 30), "sequence": (1, 34)})
    assert_miss(FoldPositionBias(budget_bytes=1000), graph, "does not fit in 1000 bytes")


def test_positions_counted_by_a_mask_depend_on_data():
    graph = graph_from_text(
        """g (int64[B,T] m, float[20,4] table) => (float[B,T,4] y)
        { one = Constant<value_int=1>() c = CumSum(m, one) p = Sub(c, one) y = Gather(table, p) }"""
    )
    value = graph.graph.inputs.pop()
    value.const_value = ir.tensor(np.ones((20, 4), np.float32), name="table")
    graph.graph.register_initializer(value)
    assert_miss(FoldPositionBias(), graph, "positions depend on data: 'c'")


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
    from omnigraph.contract.graph_check import longest_contraction, rounding_depth
    from omnigraph.contract.tolerance import Tolerance, output_scales

    found = traced(program, **options)
    graph = found.graph.clone()
    run_passes(graph, canonical())
    tolerance = Tolerance.for_precision(
        "fp32", depth=rounding_depth(graph), contraction=longest_contraction(graph)
    )
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
