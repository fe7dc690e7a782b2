"""Attention under a mask that is made from positions, its inputs, and its lowering to blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviations
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.lower_sparse_attention import LowerSparseAttention
from omnigraph.testing import EXACT, graph_from_text

CAUSAL_WINDOW = (
    """a0 = LessOrEqual(j, i)  a1 = Sub(i, w)  a2 = Greater(j, a1)  seen = And(a0, a2)"""
)
SYMMETRIC_WINDOW = """a0 = Sub(i, j)  a1 = Abs(a0)  seen = Less(a1, w)"""


def attention_graph(
    seen: str,
    *,
    mask: str = "Identity(seen)",
    dtype: str = "float",
    heads: tuple[int, int] = (2, 2),
    keys: str = "T",
    more: str = "",
    inputs: str = "",
    attributes: str = "",
) -> Graph:
    """An Attention over a mask made from positions: ``seen`` makes it from i, j and the window w.

    There are as many queries as keys; with keys="S", which is past + T, they are the last T.
    """
    length = "T" if keys == "S" else keys
    graph = graph_from_text(
        f"""g ({dtype}[B,{heads[0]},{length},4] q, {dtype}[B,{heads[1]},{keys},4] k,
            {dtype}[B,{heads[1]},{keys},4] v, int64[B,{keys}] tokens{inputs})
            => ({dtype}[B,{heads[0]},{length},4] y)
            <int64[{length}] rows, int64[{keys}] columns> {{
          zero = Constant<value_int=0>()  one = Constant<value_int=1>()
          first = Constant<value_ints=[0]>()  second = Constant<value_ints=[1]>()
          w = Constant<value_int=4>()
          t0 = Shape<start=2, end=3>(q)  t = Squeeze(t0)
          s0 = Shape<start=2, end=3>(k)  s = Squeeze(s0)  past = Sub(s, t)
          rows = Range(past, s, one)  i = Unsqueeze(rows, second)
          columns = Range(zero, s, one)  j = Unsqueeze(columns, first)
          {seen}  {more}  mask = {mask}
          y = Attention<{attributes or "is_causal=0"}>(q, k, v, mask) }}"""
    )
    values = [*graph.graph.inputs, *(v for node in graph.graph for v in node.outputs)]
    for value in values:
        dims = ["past + T" if dim == "S" else dim for dim in value.shape or ()]
        value.shape = ir.Shape(dims) if value.shape is not None else None
    return graph


PADDED = """axes = Constant<value_ints=[1, 2]>()  token = Cast<to=9>(tokens)
    there = Unsqueeze(token, axes)  own = Equal(i, j)  kept = Or(there, own)"""
BIASED = """slopes = Constant<value = float[2,1,1] {-0.5, -0.25}>()
    lowest = Constant<value_float=-3.4e38>()
    d0 = Sub(j, i)  d1 = Abs(d0)  d2 = Cast<to=1>(d1)  bias = Mul(d2, slopes)"""


def feeds_for(
    queries: int, keys: int | None = None, *, heads: tuple[int, int] = (2, 2), batch: int = 2
) -> dict[str, np.ndarray]:
    rng, keys = np.random.default_rng(queries), queries if keys is None else keys

    def normal(count: int, length: int) -> np.ndarray:
        return rng.standard_normal((batch, count, length, 4)).astype(np.float32)

    tokens = (rng.random((batch, keys)) < 0.7).astype(np.int64)
    q, k, v = normal(heads[0], queries), normal(heads[1], keys), normal(heads[1], keys)
    return {"q": q, "k": k, "v": v, "tokens": tokens}


def lowered(graph: Graph, block: int = 4, *, products: bool = False) -> Graph:
    """The graph after the pass, which must have found its sites."""
    (record,) = run_passes(graph, (LowerSparseAttention(block=block, products=products),))
    assert [finding.reason for finding in record.findings if finding.reason] == []
    return graph


def assert_same_numbers(
    graph: Graph, *feeds: dict[str, np.ndarray], block: int = 4, products: bool = False
) -> None:
    dense = GraphRunner(graph.clone())
    sparse = GraphRunner(lowered(graph, block, products=products))
    for given_ in feeds:
        for found in deviations(sparse.run(given_), dense.run(given_)).values():
            assert found.within(EXACT), (given_["q"].shape, found)
