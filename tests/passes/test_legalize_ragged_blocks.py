"""Blocks that do not fill their axis become shorter ones that do, with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_ragged_blocks import LegalizeRaggedBlocks, ragged
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

PASS = LegalizeRaggedBlocks()
RNG = np.random.default_rng(0)


def graph_of(terms: int, block: int, scales: np.ndarray, *, turned: bool = False) -> Graph:
    """x [B, K] times int8 weights [K, 6] in blocks along K; turned, stored as [6, K]."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (terms, 6)).astype(np.int8)
    shape, axis, product = f"{terms},6", 0, "y = MatMul(x, wide)"
    if turned:
        codes, scales = codes.T.copy(), scales.T.copy()
        shape, axis, product = f"6,{terms}", 1, "y = Gemm<transB = 1>(x, wide)"
    sizes = ",".join(map(str, scales.shape))
    return graph_with_weights(
        f"""g (float[B,{terms}] x, int8[{shape}] codes, float[{sizes}] scales) => (float[B,6] y) {{
            wide = DequantizeLinear<axis = {axis}, block_size = {block}>(codes, scales)
            {product}
        }}""",
        codes=codes,
        scales=scales,
    )


def scales_of(count: int) -> np.ndarray:
    return np.random.default_rng(2).uniform(0.5, 1, (count, 6)).astype(np.float32)


@pytest.mark.parametrize("turned", [False, True])
def test_blocks_are_cut_to_what_divides_the_axis(turned: bool) -> None:
    scales = scales_of(4)
    assert_pass(
        PASS,
        graph_of(200, 64, scales, turned=turned),
        graph_of(200, 8, np.repeat(scales, 8, 0)[:25], turned=turned),
        {"x": RNG.normal(size=(3, 200)).astype(np.float32)},
    )


def test_two_weights_share_their_scales_still() -> None:
    graph = graph_with_weights(
        """g (float[B,20] x, int8[20,6] one, int8[20,6] two, float[2,6] scales)
            => (float[B,6] y, float[B,6] z) {
            a = DequantizeLinear<axis = 0, block_size = 16>(one, scales)
            b = DequantizeLinear<axis = 0, block_size = 16>(two, scales)
            y = MatMul(x, a)
            z = MatMul(x, b)
        }""",
        one=RNG.integers(-8, 8, (20, 6)).astype(np.int8),
        two=RNG.integers(-8, 8, (20, 6)).astype(np.int8),
        scales=scales_of(2),
    )
    run_passes(graph, (PASS,))
    assert set(graph.graph.initializers) == {"one", "two", "scales_by_4"}


@settings(deadline=None, max_examples=30)
@given(terms=st.integers(2, 60), block=st.integers(2, 64))
def test_numbers_stay(terms: int, block: int) -> None:
    graph = graph_of(terms, block, scales_of(-(-terms // block)))
    x = {"x": np.eye(terms, dtype=np.float32)}
    before = GraphRunner(graph).run(x)["y"]
    (record,) = run_passes(graph, (PASS,))
    np.testing.assert_array_equal(GraphRunner(graph).run(x)["y"], before)
    left = any(ragged(node) for node in graph.graph)
    assert left == any(finding.reason is not None for finding in record.findings)


@pytest.mark.parametrize(("terms", "block"), [(128, 64), (64, 64), (40, 64)])
def test_blocks_that_fill_the_axis_are_left(terms: int, block: int) -> None:
    graph = graph_of(terms, block, scales_of(-(-terms // block)))
    assert not run_passes(graph, (PASS,))[0].modified


def test_what_has_no_divisor_is_left() -> None:
    assert_miss(PASS, graph_of(33, 32, scales_of(2)), "no length but 1 divides both its 33 terms")


def test_scales_that_are_computed_are_left() -> None:
    graph = graph_with_weights(
        """g (float[B,20] x, int8[20,6] codes, float[2,6] given) => (float[B,6] y) {
            scales = Abs(given)
            wide = DequantizeLinear<axis = 0, block_size = 16>(codes, scales)
            y = MatMul(x, wide)
        }""",
        codes=np.ones((20, 6), np.int8),
    )
    assert_miss(PASS, graph, "scales are not constant")
