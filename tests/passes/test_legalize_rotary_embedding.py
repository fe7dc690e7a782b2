"""legalize-rotary-embedding: what is there for a batch of one is repeated for the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.legalize_rotary_embedding import LegalizeRotaryEmbedding
from omnigraph.testing import assert_pass, graph_from_text

BY_ROW = """g (float[{b},2,T,8] x, float[{c},T,4] c, float[{c},T,4] s) => (float[{b},2,T,8] y)
    {{ y = RotaryEmbedding(x, c, s) }}"""
BY_POSITION = """g (float[{b},2,T,8] x, float[9,4] c, float[9,4] s, int64[{c},T] p)
    => (float[{b},2,T,8] y) {{ y = RotaryEmbedding(x, c, s, p) }}"""


def graph(text: str, b: str = "B", c: str = "1") -> Graph:
    return graph_from_text(text.format(b=b, c=c))


def feeds(batch: int = 3, length: int = 5, *, position: bool = False, rows: int = 1) -> Any:
    rng = np.random.default_rng(batch + length)
    table = (9, 4) if position else (rows, length, 4)
    shapes = {"x": (batch, 2, length, 8), "c": table, "s": table}
    given_ = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    return given_ | ({"p": rng.integers(0, 9, (rows, length))} if position else {})


def turned(x: np.ndarray, c: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The ONNX rule, with caches [B or 1, T, R/2]."""
    a, b, c, s = x[..., :4], x[..., 4:], c[:, None], s[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


@pytest.mark.parametrize("b", ["B", "3"])
def test_legalize_rotary_embedding_repeats_the_caches(b: str):
    before = graph(BY_ROW, b)
    given_ = feeds()
    assert run_passes(before, (LegalizeRotaryEmbedding(),))[0].modified
    assert not run_passes(before, (LegalizeRotaryEmbedding(),))[0].modified
    assert count_ops(before)["Expand"] == 2
    found = GraphRunner(before).run(given_)["y"]
    np.testing.assert_allclose(found, turned(**given_), atol=1e-6)


def test_legalize_rotary_embedding_takes_the_batch_of_an_input():
    before = graph(BY_ROW)
    after = graph_from_text(
        """g (float[B,2,T,8] x, float[1,T,4] c, float[1,T,4] s) => (float[B,2,T,8] y)
        { n = Shape<start=0, end=1>(x)  ones = Constant<value_ints=[1, 1]>()
          shape = Concat<axis=0>(n, ones)  cb = Expand(c, shape)
          n2 = Shape<start=0, end=1>(x)  shape2 = Concat<axis=0>(n2, ones)  sb = Expand(s, shape2)
          y = RotaryEmbedding(x, cb, sb) }"""
    )
    run_passes(before, (LegalizeRotaryEmbedding(),))
    assert [n.op_type for n in before.graph] == [n.op_type for n in after.graph]
    given_ = feeds()
    np.testing.assert_array_equal(
        GraphRunner(before).run(given_)["y"], GraphRunner(after).run(given_)["y"]
    )


def test_legalize_rotary_embedding_repeats_the_positions():
    before = graph(BY_POSITION)
    given_ = feeds(position=True)
    assert run_passes(before, (LegalizeRotaryEmbedding(),))[0].modified
    assert not run_passes(before, (LegalizeRotaryEmbedding(),))[0].modified
    found = GraphRunner(before).run(given_)["y"]
    caches = {k: given_[k][given_["p"]] for k in "cs"}
    np.testing.assert_allclose(found, turned(given_["x"], **caches), atol=1e-6)


@pytest.mark.parametrize(("b", "c", "batch"), [("B", "B", 3), ("1", "1", 1)])
@pytest.mark.parametrize("text", [BY_ROW, BY_POSITION])
def test_legalize_rotary_embedding_leaves_one_that_is_legal(text, b, c, batch):
    given_ = feeds(batch, position=text is BY_POSITION, rows=batch)
    assert_pass(LegalizeRotaryEmbedding(), graph(text, b, c), None, given_)


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 5), position=st.booleans())
def test_legalize_rotary_embedding_at_any_batch(batch, length, position):
    before = graph(BY_POSITION if position else BY_ROW)
    run_passes(before, (LegalizeRotaryEmbedding(),))
    given_ = feeds(batch, length, position=position)
    found = GraphRunner(before).run(given_)["y"]
    caches = {k: given_[k][given_["p"]] if position else given_[k] for k in "cs"}
    np.testing.assert_allclose(found, turned(given_["x"], **caches), atol=1e-6)
