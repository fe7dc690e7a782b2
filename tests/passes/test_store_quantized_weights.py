"""Weights that the Graph rounds are stored as integers, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.store_quantized_weights import StoreQuantizedWeights
from omnigraph.testing import assert_miss, graph_text, graph_with_weights

RNG = np.random.default_rng(0)
V, C = 40, 32
W = RNG.standard_normal((V, C)).astype(np.float32)
S = (np.abs(W).max(axis=1) / np.float32(120)).astype(np.float32)  # some are clipped
Z = np.zeros(V, np.int8)
X = {"x": RNG.standard_normal((3, C)).astype(np.float32), "ids": np.array([[3, 0], [39, 3]])}
INPUTS = f"float[{V},{C}] w, float[{V}] s, int8[{V}] z"
ROUND = "q = QuantizeLinear<axis=0>(w, s, z)  r = DequantizeLinear<axis=0>(q, s, z)"
LINEAR = f"""g (float[B,{C}] x, {INPUTS}) => (float[B,{V}] y)
    {{ {ROUND}  t = Transpose<perm=[1,0]>(r)  y = MatMul(x, t) }}"""
TIED = f"""g (int64[B,T] ids, {INPUTS}) => (float[B,T,{V}] y)
    {{ {ROUND}  h = Gather(r, ids)
       p = QuantizeLinear<axis=0>(w, s, z)  o = DequantizeLinear<axis=0>(p, s, z)
       t = Transpose<perm=[1,0]>(o)  y = MatMul(h, t) }}"""


def graph(text: str) -> Graph:
    return graph_with_weights(text, w=W, s=S, z=Z)


def stored(graph: Graph) -> dict[str, ir.DataType]:
    return {n: v.dtype for n, v in graph.graph.initializers.items() if len(v.shape) == 2}


def assert_same(text: str) -> Graph:
    before, after = graph(text), graph(text)
    (record,) = run_passes(after, [StoreQuantizedWeights()])
    assert record.modified
    check_graph(after, "test")
    feeds = {value.name: X[value.name] for value in before.graph.inputs}
    expected, found = (GraphRunner(g).run(feeds)["y"] for g in (before, after))
    # The codes are equal, and so are all factors: sums may be in another order.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    codes = next(v for n, v in after.graph.initializers.items() if n.endswith("int8"))
    wanted = np.clip(np.rint(W / S[:, None]), -128, 127)
    array = codes.const_value.numpy()
    np.testing.assert_array_equal(array if array.shape == W.shape else array.T, wanted)
    once = graph_text(after)
    (again,) = run_passes(after, [StoreQuantizedWeights()])
    assert not again.modified and graph_text(after) == once
    return after


def test_a_linear_layer_is_stored_as_its_product_takes_it():
    after = assert_same(LINEAR)
    assert stored(after) == {"w_T_int8": ir.DataType.INT8}
    assert count_ops(after)["Transpose"] == 0


def test_a_table_with_two_uses_is_stored_once_and_looked_up_by_rows():
    after = assert_same(TIED)
    assert stored(after) == {"w_int8": ir.DataType.INT8}
    ops = count_ops(after)
    assert (ops["Gather"], ops["QuantizeLinear"], ops["DequantizeLinear"]) == (2, 0, 1)


def test_what_is_left_alone_and_why():
    whole = ROUND.replace("float[40] s", "float s")
    scalar = LINEAR.replace(f"float[{V}] s, int8[{V}] z", "float s, int8 z").replace(ROUND, whole)
    one = graph_with_weights(scalar, w=W, s=np.float32(0.02), z=np.int8(0))
    assert_miss(StoreQuantizedWeights(), one, "not one scale for each index")
    dynamic = graph_with_weights(
        LINEAR.replace(", float[40] s", "").replace("g (", f"g (float[{V}] s, "), w=W, z=Z
    )
    assert_miss(StoreQuantizedWeights(), dynamic, "no constant")
    read = LINEAR.replace("=> (float", f"=> (int8[{V},{C}] q, float")
    assert_miss(StoreQuantizedWeights(), graph(read), "read by something else")
