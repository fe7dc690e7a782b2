"""ConvertPrecision: what becomes a half, what stays in fp32, and the numbers of both."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from precision_graphs import HALVES, convert, dtypes, graph_of

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Tolerance, deviations
from omnigraph.errors import UsageError
from omnigraph.graph import MODULE_KEY, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.compress_weights import CompressWeights
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.testing import graph_from_text

LEAST = float(np.finfo(np.float32).min)

BLOCK = """
float[batch, sequence, 8] x => float[batch, sequence, 8] y
{
    normed = LayerNormalization<axis = -1>(x, scale, shift)
    up = MatMul(normed, w_up)
    biased = Add(up, b_up)
    active = Gelu(biased)
    down = MatMul(active, w_down)
    y = Add(x, down)
}
"""


def block_weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"scale": (8,), "shift": (8,), "w_up": (8, 32), "b_up": (32,), "w_down": (32, 8)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_products_become_half_and_norms_stay(precision: str) -> None:
    graph = convert(graph_of(BLOCK, **block_weights()), precision)
    found, half = dtypes(graph), HALVES[precision]
    for name in ("up", "biased", "active", "down", "w_up", "b_up", "w_down"):
        assert found[name] == half, name
    for name in ("x", "normed", "scale", "shift", "y"):
        assert found[name] == ir.DataType.FLOAT, name
    assert count_ops(graph)["Cast"] == 3  # into the first product, the residual, and out


def test_numbers_of_fp16() -> None:
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)}
    reference = GraphRunner(graph_of(BLOCK, **block_weights())).run(feeds)
    found = GraphRunner(convert(graph_of(BLOCK, **block_weights()))).run(feeds)
    tolerance = Tolerance.for_precision("fp16", depth=9, contraction=32)
    assert deviations(found, reference)["y"].within(tolerance)


def test_new_nodes_know_their_module() -> None:
    graph = graph_of(BLOCK, **block_weights())
    (record,) = run_passes(graph, [ConvertPrecision()])
    assert record.changes == {"Cast": 3}
    assert all(node.metadata_props[MODULE_KEY] == "block" for node in graph.graph)


def test_weights_are_converted_when_read_and_shared() -> None:
    reads = []

    def read() -> ir.Tensor:
        reads.append(1)
        return ir.Tensor(np.ones((16, 8), np.float32), name="table")

    graph = graph_of(
        """
        int64[batch, sequence] ids => float[batch, sequence, 16] logits
        {
            embedded = Gather<axis = 0>(table, ids)
            turned = Transpose<perm = [1, 0]>(table)
            logits = MatMul(embedded, turned)
        }
        """,
        table=np.ones((16, 8), np.float32),
    )
    table = graph.graph.initializers["table"]
    table.const_value = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([16, 8]), name="table")
    ConvertPrecision()(graph)
    assert not reads
    assert list(graph.graph.initializers) == ["table"]
    assert graph.graph.initializers["table"].const_value.numpy().dtype == np.float16
    assert len(reads) == 1


def test_weight_of_both_widths_is_there_in_both() -> None:
    graph = graph_of(
        """
        float[n, 4] x => float[n, 4] y
        {
            normed = LayerNormalization(x, w)
            y = Mul(normed, w)
        }
        """,
        w=np.full(4, 0.1, np.float32),
    )
    convert(graph)
    kinds = {n: v.dtype for n, v in graph.graph.initializers.items()}
    assert kinds == {"w": ir.DataType.FLOAT, "w_fp16": ir.DataType.FLOAT16}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_least_float_in_a_mask_stays_finite_and_infinity_infinite(precision: str) -> None:
    graph = graph_of(
        """
        float[n, 4] x, bool[n, 4] seen => float[n, 4] y, float[n, 4] z
        {
            y0 = Where(seen, x, but_one)
            y1 = Where(seen, y0, least)
            y = Add(y1, y1)
            z1 = Where(seen, x, endless)
            z = Add(z1, z1)
        }
        """,
        least=np.array(LEAST, np.float32),
        but_one=np.nextafter(np.float32(LEAST), np.float32(0)),
        endless=np.array(-np.inf, np.float32),
    )
    convert(graph, precision)
    half = HALVES[precision].numpy()
    # onnxruntime zeroes rows that the lowest number hides, and not those of another.
    but_one = np.nextafter(np.array(ml_dtypes.finfo(half).min, half), np.array(0, half))
    weights = {n: v.const_value.numpy() for n, v in graph.graph.initializers.items()}
    assert weights["least"] == ml_dtypes.finfo(half).min
    assert weights["endless"] == half.type(-np.inf)
    assert weights["least"] < weights["but_one"] == but_one


def test_huge_mask_made_of_integers_is_clipped_before_it_is_cast() -> None:
    text = """
        float[n, 4] x, int64[n, 4] mask => float[n, 4] y
        {
            kept = Cast<to = 1>(mask)
            hidden = Sub(one, kept)
            bias = Mul(hidden, least)
            biased = Add(x, bias)
            y = Softmax(biased)
        }
        """
    weights = {"one": np.array(1, np.float32), "least": np.array(LEAST, np.float32)}
    feeds = {
        "x": np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32),
        "mask": np.array([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]),
    }
    reference = GraphRunner(graph_of(text, **weights)).run(feeds)["y"]
    graph = convert(graph_of(text, **weights))
    assert count_ops(graph)["Clip"] == 1
    found = GraphRunner(graph).run(feeds)["y"]
    np.testing.assert_allclose(found[:2], reference[:2], atol=2e-3)
    np.testing.assert_allclose(found[2].sum(), 1, atol=2e-3)  # nothing is visible, and no NaN


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_positions_stay_in_fp32(precision: str) -> None:
    graph = graph_of(
        """
        int64[n] positions, float[n, 4] x => float[n, 4] y
        {
            numbers = Cast<to = 1>(positions)
            column = Unsqueeze(numbers, axes)
            angles = MatMul(column, frequencies)
            cosines = Cos(angles)
            y = Mul(x, cosines)
        }
        """,
        axes=np.array([1], np.int64),
        frequencies=np.array([[1, 0.1, 0.01, 0.001]], np.float32),
    )
    convert(graph, precision)
    found = dtypes(graph)
    for name in ("numbers", "column", "angles", "frequencies", "cosines"):
        assert found[name] == ir.DataType.FLOAT, name
    assert found["cosines_" + precision] == HALVES[precision]


def test_norm_and_softmax_spelled_out_stay_in_fp32() -> None:
    graph = graph_of(
        """
        float[n, 4] x => float[n, 4] y
        {
            squares = Pow(x, two)
            mean = ReduceMean<keepdims = 1>(squares, axes)
            padded = Add(mean, epsilon)
            root = Sqrt(padded)
            inverse = Reciprocal(root)
            normed = Mul(x, inverse)
            scaled = Mul(normed, weight)
            top = ReduceMax<keepdims = 1>(scaled, axes)
            below = Sub(scaled, top)
            powers = Exp(below)
            total = ReduceSum<keepdims = 1>(powers, axes)
            y = Div(powers, total)
        }
        """,
        two=np.array(2, np.float32),
        axes=np.array([-1], np.int64),
        epsilon=np.array(1e-6, np.float32),
        weight=np.ones(4, np.float32),
    )
    convert(graph)
    found = dtypes(graph)
    assert found["weight"] == found["scaled"] == ir.DataType.FLOAT16
    for name in ("squares", "mean", "padded", "root", "inverse", "normed", "below", "powers", "y"):
        assert found[name] == ir.DataType.FLOAT, name


def test_integers_and_booleans_stay() -> None:
    graph = graph_of(
        """
        int64[n, 4] ids, float[n, 4] x => int64[n, 4] next, bool[n, 4] seen, float[n, 4] y
        {
            next = Add(ids, ids)
            seen = Greater(next, ids)
            y = Add(x, x)
        }
        """
    )
    convert(graph)
    found = dtypes(graph)
    assert found["next"] == ir.DataType.INT64
    assert found["seen"] == ir.DataType.BOOL


def test_moves_between_fp32_ends_stay() -> None:
    graph = graph_of(
        """
        float[n, 4] x => float[4, n] y
        {
            normed = RMSNormalization(x, scale)
            y = Transpose<perm = [1, 0]>(normed)
        }
        """,
        scale=np.ones(4, np.float32),
    )
    assert not ConvertPrecision()(graph).modified
    assert count_ops(graph) == {"RMSNormalization": 1, "Transpose": 1}


def test_comparison_reads_fp32_on_both_sides() -> None:
    graph = graph_of(
        """
        float[n, 4] x, float[n, 4] limit => bool[n, 4] y
        {
            doubled = Add(x, x)
            y = Greater(doubled, limit)
        }
        """
    )
    convert(graph)
    assert [v.dtype for v in graph.graph[-1].inputs] == [ir.DataType.FLOAT] * 2


def test_past_and_present_keep_fp32_at_the_boundary() -> None:
    graph = graph_of(
        """
        float[b, 2, past, 4] past_key, float[b, 2, t, 4] x
        => float[b, 2, all, 4] key, float[b, 2, t, 4] y
        {
            query = Mul(x, x)
            key = Concat<axis = 2>(past_key, query)
            y = Attention(query, key, key)
        }
        """
    )
    convert(graph)
    found = dtypes(graph)
    assert found["key_fp16"] == ir.DataType.FLOAT16
    attention = next(n for n in graph.graph if n.op_type == "Attention")
    assert {v.dtype for v in attention.inputs} == {ir.DataType.FLOAT16}


def test_subgraph_reads_fp32() -> None:
    branch = "then_branch = g1 () => (float[n, 4] a) { a = Add(doubled, x) }"
    other = "else_branch = g2 () => (float[n, 4] b) { b = Identity(x) }"
    graph = graph_of(
        f"""
        float[n, 4] x, bool c => float[n, 4] y
        {{
            doubled = Add(x, x)
            y = If<{branch}, {other}>(c)
        }}
        """
    )
    convert(graph)
    feeds = {"x": np.ones((1, 4), np.float32), "c": np.array(True)}
    assert GraphRunner(graph).run(feeds)["y"].tolist() == [[3, 3, 3, 3]]


def test_stored_halves_are_used_as_they_are() -> None:
    weights = {"w": np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)}
    text = "float[n, 64] x => float[n, 64] y\n{ y = MatMul(x, w) }"
    graph = graph_of(text, **weights)
    CompressWeights()(graph)
    convert(graph)
    assert graph.graph[-2].inputs[1].is_initializer()
    assert count_ops(graph) == {"Cast": 2, "MatMul": 1}


def test_op_without_bfloat16_stays_in_fp32() -> None:
    text = """
        float[i, j] x => float[i, i] y
        { doubled = Add(x, x)
          y = Einsum<equation = "ij,kj->ik">(doubled, doubled) }
        """
    assert dtypes(convert(graph_of(text), "bf16"))["y"] == ir.DataType.FLOAT
    assert "y_fp16" in dtypes(convert(graph_of(text), "fp16"))


def test_pooled_features_meet_a_product_in_half() -> None:
    graph = graph_of(
        """
        float[n, t, 4] x => float[n, 4] y
        {
            pooled = ReduceMean<keepdims = 0>(x, axes)
            y = MatMul(pooled, w)
        }
        """,
        axes=np.array([1], np.int64),
        w=np.ones((4, 4), np.float32),
    )
    assert dtypes(convert(graph))["w"] == ir.DataType.FLOAT16


def test_ops_asked_for_stay_in_fp32() -> None:
    graph = graph_of("float[n, 4] x => float[n, 4] y\n{ a = Mish(x) y = HardSwish(a) }")
    assert ConvertPrecision("bf16", fp32_ops=("Mish",))(graph).modified
    found = dtypes(graph)
    assert found["a"] == ir.DataType.FLOAT
    assert found["y_bf16"] == ir.DataType.BFLOAT16


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(UsageError, match="expected fp16 or bf16, found 'int8'"):
        ConvertPrecision("int8")


def test_a_copy_made_before_keeps_its_types():
    graph = graph_from_text("g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  y = Neg(a) }")
    copy = graph.clone()
    run_passes(graph, (ConvertPrecision("fp16"),))
    assert [v.dtype for n in copy.graph for v in n.outputs] == [ir.DataType.FLOAT] * 2


POOLED = """
float[batch, sequence, 4] x, float[batch, sequence, 1] shown => float[batch, 4] y
{
    kept = Mul(x, shown)
    total = ReduceSum<keepdims = 0>(kept, axes)
    count = ReduceSum<keepdims = 0>(shown, axes)
    guarded = Clip(count, least)
    mean = Div(total, guarded)
    length = ReduceL2<keepdims = 1>(mean, last)
    bounded = Max(length, least)
    wide = Expand(bounded, shape)
    y = Div(mean, wide)
}
"""


@pytest.mark.parametrize("least", [1e-9, 1e-12, 3e-8])
def test_what_a_constant_keeps_from_zero_is_not_zero_in_half(least: float) -> None:
    rng = np.random.default_rng(0)
    shown = np.array([[1, 1, 0], [0, 0, 0]], np.float32)[..., None]
    feeds = {"x": rng.normal(size=(2, 3, 4)).astype(np.float32), "shown": shown}
    weights = {
        "least": np.array(least, np.float32),
        "axes": np.array([1]),
        "last": np.array([1]),
        "shape": np.array([2, 4]),
    }
    reference = GraphRunner(graph_of(POOLED, **weights)).run(feeds)["y"]
    found = GraphRunner(convert(graph_of(POOLED, **weights))).run(feeds)["y"]
    np.testing.assert_allclose(found, reference, atol=2e-3)
    assert not found[1].any()


def test_a_small_bias_guards_nothing() -> None:
    text = """
        float[n, 4] x, float[n, 4] by => float[n, 4] y
        {
            biased = Add(x, bias)
            y = Div(by, biased)
        }
        """
    bias = np.array([1e-9, 0.5, 1e-7, -0.25], np.float32)
    found = dtypes(convert(graph_of(text, bias=bias)))
    assert found["biased"] == ir.DataType.FLOAT16
