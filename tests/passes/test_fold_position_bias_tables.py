"""Biases and positions out of tables: Toeplitz rows, constants of static sizes, and slices."""

from __future__ import annotations

import numpy as np
import pytest
from position_bias_graphs import (
    ALIBI,
    CLAMPED,
    LOGARITHMS,
    REPLACED,
    SEEN,
    TABLE,
    TOKENS,
    assert_same,
    attention,
    became,
    feeds,
)

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph, declare_ranges
from omnigraph.passes.analysis.attention.mask import meaning
from omnigraph.passes.analysis.position.toeplitz import Toeplitz
from omnigraph.passes.base import run_passes
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import assert_miss, graph_from_text, graph_with_weights

# -- a Toeplitz row --------------------------------------------------------------------------------


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
    if not rows:
        return graph_from_text(POSITION_IDS.format(table="", body=body))
    table = np.random.default_rng(1).standard_normal((rows, 4)).astype(np.float32)
    text = POSITION_IDS.format(table=f", float[{rows},4] table", body=body)
    return graph_with_weights(text, table=table)


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
    graph = graph_with_weights(
        """g (int64[B,T] m, float[20,4] table) => (float[B,T,4] y)
        { one = Constant<value_int=1>() c = CumSum(m, one) p = Sub(c, one)
        y = Gather(table, p) }""",
        table=np.ones((20, 4), np.float32),
    )
    assert_miss(FoldPositionBias(), graph, "positions depend on data: 'c'")
