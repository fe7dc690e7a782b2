"""Attention written out as ONNX text, its inputs, and the check that it becomes one Attention."""

from __future__ import annotations

import numpy as np

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fuse_attention import FuseAttention
from omnigraph.testing import EXACT, graph_from_text

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


def tensors(queries: int = 5, keys: int = 7, heads: int = 4) -> dict[str, np.ndarray]:
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


SIZES = "n = Shape<start=2, end=3>(q) l = Shape<start=2, end=3>(k) ts = Concat<axis=0>(n, l)"
