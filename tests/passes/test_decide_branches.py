"""An If on a size becomes its branch where the ranges of the dimensions settle it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.graph import MODULE_KEY, Graph, count_ops, declare_ranges
from omnigraph.passes.base import run_passes
from omnigraph.passes.decide_branches import DecideBranches
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.testing import graph_from_text, graph_with_weights

KERNEL = np.ones((1, 1, 4), np.float32)
#: A squeeze of the last axis if it is 1, as torch exports it.
SQUEEZE = """g (float[B,1,T] x, float[1,1,4] k) => (float[B,1,M] y) {
    c = Conv<strides = [4]>(x, k)
    n = Shape(c)
    last = Constant<value = int64[1] {-1}>()
    size = Gather(n, last)
    one = Constant<value = int64[1] {1}>()
    is_one = Equal(size, one)
    y = If(is_one) <
        then_branch = a () => (float[B,1] s) { s = Squeeze(c, last) },
        else_branch = b () => (float[B,1,M] i) { i = Identity(c) }>
}"""


def decided(least: int, most: int | None, text: str = SQUEEZE) -> tuple[Graph, bool]:
    """The Graph after the pass, and whether it changed; the numbers at both ends are compared."""
    graph = graph_with_weights(text, k=KERNEL)
    declare_ranges(graph, {"B": (1, None), "T": (least, most)})
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        node.metadata_props[MODULE_KEY] = "net"
    run_passes(graph, (FoldConstants(),))
    runs = []
    for size in (least, most or least + 9):
        x = np.random.default_rng(size).normal(size=(2, 1, size)).astype(np.float32)
        runs.append(({"x": x}, GraphRunner(graph.clone()).run({"x": x})["y"]))
    (record,) = run_passes(graph, (DecideBranches(),))
    check_graph(graph, "the pass")
    for feeds, expected in runs:
        np.testing.assert_array_equal(GraphRunner(graph).run(feeds)["y"], expected)
    assert not run_passes(graph, (DecideBranches(),))[0].modified
    assert record.modified == ("If" not in count_ops(graph))
    return graph, record.modified


@pytest.mark.parametrize(("least", "most"), [(4, 7), (5, 5), (4, 4)])
def test_a_size_that_is_one_everywhere_is_squeezed(least, most):
    graph, modified = decided(least, most)
    assert modified
    assert count_ops(graph)["Squeeze"] == 1


@pytest.mark.parametrize("most", [8, 100, None])
def test_a_size_that_is_never_one_is_not_squeezed(most):
    graph, modified = decided(8, most)
    assert modified
    assert "Squeeze" not in count_ops(graph)


@pytest.mark.parametrize("most", [8, None])
def test_a_size_that_may_be_one_is_left(most):
    assert not decided(4, most)[1]


def test_a_size_that_a_longer_kernel_makes_less_is_left():
    # One number at both ends of the ranges, and five where x is longest and k shortest.
    text = SQUEEZE.replace("float[1,1,4] k", "float[1,1,S] k").replace("[4]", "[1]")
    graph = graph_from_text(text)
    declare_ranges(graph, {"B": (1, None), "T": (4, 8), "S": (4, 8)})
    run_passes(graph, (FoldConstants(),))
    assert not run_passes(graph, (DecideBranches(),))[0].modified
