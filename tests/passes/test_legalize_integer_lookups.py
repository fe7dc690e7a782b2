"""Rows of integer tables are looked up behind a DequantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from omnigraph.passes.legalize_integer_lookups import LegalizeIntegerLookups
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

PASS = LegalizeIntegerLookups()
RNG = np.random.default_rng(0)
CODES = RNG.integers(-127, 128, (50, 8)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.02, 50).astype(np.float32)
FEEDS = {"ids": RNG.integers(0, 50, (2, 5))}
HEAD = "g (int64[B,T] ids, {kind}[50,8] codes, float[50] scales) => (float[B,T,8] y)"
BEFORE = """{{
    rows = Gather(codes, ids)
    wide = Cast<to = 1>(rows)
    picked = Gather(scales, ids)
    axis = Constant<value_ints = [{axis}]>()
    column = Unsqueeze(picked, axis)
    y = Mul({factors})
}}"""
AFTER = "{ wide = DequantizeLinear<axis = 0>(codes, scales) y = Gather<axis = 0>(wide, ids) }"


def graph_of(body: str, codes: ir.TensorProtocol | np.ndarray = CODES) -> Graph:
    tensor = codes if isinstance(codes, ir.TensorProtocol) else ir.tensor(codes)
    head = HEAD.format(kind=tensor.dtype.name.lower())
    return graph_with_weights(f"{head} {body}", codes=tensor.numpy(), scales=SCALES)


@pytest.mark.parametrize("factors", ["wide, column", "column, wide"])
@pytest.mark.parametrize("axis", [-1, 2])
def test_rows_are_widened_by_one_op(factors: str, axis: int) -> None:
    before = graph_of(BEFORE.format(factors=factors, axis=axis))
    assert_pass(PASS, before, graph_of(AFTER), FEEDS)


def test_a_table_of_logits_is_widened_once() -> None:
    text = """g (int64[B,T] ids, int8[50,8] codes, float[50] scales) => (float[B,T,50] y) {
        rows = Gather(codes, ids)
        wide = Cast<to = 1>(rows)
        picked = Gather(scales, ids)
        axis = Constant<value_ints = [-1]>()
        column = Unsqueeze(picked, axis)
        x = Mul(wide, column)
        table = DequantizeLinear<axis = 0>(codes, scales)
        turned = Transpose<perm = [1, 0]>(table)
        y = MatMul(x, turned)
    }"""
    graph = graph_with_weights(text, codes=CODES, scales=SCALES)
    run_passes(graph, (PASS, EliminateCommonSubexpressions()))
    assert count_ops(graph) == {"DequantizeLinear": 1, "Gather": 1, "Transpose": 1, "MatMul": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("rows = Gather(codes, ids)", "rows = Gather<axis = 1>(codes, ids)"), "rows of a matrix"),
        (("Gather(scales, ids)", "Gather(scales, other)"), "not scales of the same rows"),
        (("[-1]", "[0]"), "do not stand for whole rows"),
        (("y = Mul(wide, column)", "y = Add(wide, column)"), "multiplied by their scales alone"),
        (("y = Mul(wide, column)", "z = Mul(wide, column) y = Add(z, wide)"), "scales alone"),
        (("Cast<to = 1>(rows)", "Cast<to = 10>(rows)"), "multiplied by their scales alone"),
    ],
)
def test_what_is_no_lookup_of_scaled_rows_is_left(change: tuple[str, str], reason: str) -> None:
    body = BEFORE.format(factors="wide, column", axis=-1)
    assert change[0] in body
    body = body.replace(*change).replace("{", "{ other = Abs(ids)", 1)
    if "to = 10" in body:
        body = body.replace("y = Mul(wide", "again = Cast<to = 1>(wide) y = Mul(again")
    if "axis = 1" in body:
        text = (
            f"g (int64[B,T] ids, int8[50,50] codes, float[50] scales) => (float[B,T,50] y) {body}"
        )
        graph = graph_with_weights(text, codes=np.ones((50, 50), np.int8), scales=SCALES)
    else:
        graph = graph_of(body)
    assert_miss(PASS, graph, reason)
