"""Attention under a bias of positions, its inputs, and what FoldPositionBias makes of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.testing import EXACT, graph_with_weights

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
    return graph_with_weights(
        f"""g (float[{B},2,{T},8] q, float[{B},2,{S},8] k, float[{B},2,{S},8] v,
            int64[{B},{S}] m{constants}) => (float[{B},2,{T},8] y)
        {{ {POSITIONS} {LEAST} {body} y = Attention{attribute}(q, k, v, mask) }}""",
        **arrays,
    )


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
