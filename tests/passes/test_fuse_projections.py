"""Several products of one input become one, with the same numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import deviation
from omnigraph.graph import count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.fuse_projections import FuseProjections
from omnigraph.passes.pipelines import canonical
from omnigraph.testing import assert_miss, assert_outputs, assert_pass, graph_with_weights

RNG = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


X = {"x": random(2, 3, 8)}


def text(body: str, inputs: str = "", outputs: str = "float[N,T,4] y, float[N,T,6] z") -> str:
    return f"g (float[N,T,8] x, float[8,4] wq, float[8,6] wk{inputs}) => ({outputs}) {{ {body} }}"


WEIGHTS = {"wq": random(8, 4), "wk": random(8, 6)}
BIASES = {"bq": random(4), "bk": random(6)}


def test_two_products_with_their_biases():
    before = graph_with_weights(
        text(
            "m = MatMul(x, wq) y = Add(m, bq) n = MatMul(x, wk) z = Add(bk, n)",
            ", float[4] bq, float[6] bk",
        ),
        **WEIGHTS,
        **BIASES,
    )
    after = graph_with_weights(
        """g (float[N,T,8] x, float[8,10] w, float[10] b, int64[2] s)
        => (float[N,T,4] y, float[N,T,6] z)
        { m = MatMul(x, w) a = Add(m, b) y, z = Split<axis=-1>(a, s) }""",
        w=np.concatenate(list(WEIGHTS.values()), 1),
        b=np.concatenate(list(BIASES.values())),
        s=np.array([4, 6]),
    )
    expected = GraphRunner(before.clone()).run(X)
    (record,) = run_passes(before, (FuseProjections(),))
    assert record.findings[0].became == "one MatMul of 2, 10 columns"
    assert [n.op_type for n in before.graph] == ["MatMul", "Add", "Constant", "Split"]
    assert sorted(before.graph.initializers) == ["bq+bk", "wq+wk"]
    assert isinstance(before.graph.initializers["wq+wk"].const_value, ir.LazyTensor)
    for name, found in GraphRunner(before).run(X).items():
        assert deviation(found, expected[name]).rms < 1e-6
        assert deviation(GraphRunner(after).run(X)[name], found).rms < 1e-6
    assert not run_passes(before, (FuseProjections(),))[0].modified


def test_a_product_alone_is_no_site():
    graph = graph_with_weights(text("y = MatMul(x, wq) h = Exp(x) z = MatMul(h, wk)"), **WEIGHTS)
    assert_pass(FuseProjections(), graph, None, X)
    assert run_passes(graph, (FuseProjections(),))[0].findings == ()


def test_misses_say_why():
    mixed = graph_with_weights(
        text("m = MatMul(x, wq) y = Add(m, bq) z = MatMul(x, wk)", ", float[4] bq"),
        **WEIGHTS,
        bq=BIASES["bq"],
    )
    assert_miss(FuseProjections(), mixed, "some of its products have a bias")
    wide = graph_with_weights(text("y = MatMul(x, wq) z = MatMul(x, wk)"), **WEIGHTS)
    assert_miss(FuseProjections(most_columns=5), wide, "at most 5 columns")


def test_a_weight_that_is_read_twice_stays():
    graph = graph_with_weights(
        text(
            "y = MatMul(x, wq) z = MatMul(x, wk) v = Exp(wq)",
            outputs="float[N,T,4] y, float[N,T,6] z, float[8,4] v",
        ),
        **WEIGHTS,
    )
    assert_pass(FuseProjections(), graph, None, X)


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    biased=st.booleans(),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 4),
)
@settings(max_examples=20, deadline=None)
def test_any_number_of_products(widths, biased, batch, tokens):
    arrays, inputs, lines, outputs = {}, [], [], []
    for n, width in enumerate(widths):
        arrays[f"w{n}"] = random(8, width)
        inputs.append(f"float[8,{width}] w{n}")
        outputs.append(f"float[N,T,{width}] y{n}")
        if biased:
            arrays[f"b{n}"] = random(width)
            inputs.append(f"float[{width}] b{n}")
            lines.append(f"m{n} = MatMul(x, w{n}) y{n} = Add(m{n}, b{n})")
        else:
            lines.append(f"y{n} = MatMul(x, w{n})")
    graph = graph_with_weights(
        f"g (float[N,T,8] x, {', '.join(inputs)}) => ({', '.join(outputs)}) "
        f"{{ {' '.join(lines)} }}",
        **arrays,
    )
    feeds = {"x": random(batch, tokens, 8)}
    expected = GraphRunner(graph.clone()).run(feeds)
    assert run_passes(graph, (FuseProjections(),))[0].modified
    assert count_ops(graph)["MatMul"] == 1
    for name, found in GraphRunner(graph).run(feeds).items():
        assert deviation(found, expected[name]).peak < 1e-5


def test_a_traced_decoder_has_one_product_for_queries_keys_and_values(traced):
    made = traced("forward", kind="encoder-decoder", positions="rotary")
    graph = made.graph.clone()
    run_passes(graph, canonical())
    before = count_ops(graph)["MatMul"]
    (record,) = run_passes(graph, (FuseProjections(),))
    became = [finding.became for finding in record.findings if finding.became]
    # Two layers of self-attention on each side, and keys and values of the cross-attentions, all
    # of which read the encoder's one output.
    assert became.count("one MatMul of 3, 192 columns") == 4
    assert became.count("one MatMul of 4, 256 columns") == 1
    assert count_ops(graph)["MatMul"] == before - 4 * 2 - 3
    assert_outputs(graph, made.references)
