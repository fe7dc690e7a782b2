"""An odd number of output channels becomes a multiple of 8, of which as many are kept."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.pad_odd_channels import PadOddChannels
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

PASS = PadOddChannels(least=9)
RNG = np.random.default_rng(0)
V, C = 21, 6
TABLE = RNG.normal(size=(V, C)).astype(np.float32)
CODES = RNG.integers(-127, 128, (V, C)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.02, V).astype(np.float32)
CUT = """
    zero = Constant<value = int64[1] {0}>()
    end = Constant<value = int64[1] {21}>()
    last = Constant<value = int64[1] {2}>()
"""


def padded(array: np.ndarray, axis: int = 0, filling: int = 0) -> np.ndarray:
    widths = [(0, 3 if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, widths, constant_values=filling)


def feeds(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_a_table_of_embeddings_and_logits() -> None:
    text = """g (int64[B,T] ids, float[{0},6] table) => (float[B,T,21] y) {{
        x = Gather(table, ids)
        turned = Transpose<perm = [1, 0]>(table)
        {1}
    }}"""
    after = f"more = MatMul(x, turned) {CUT} y = Slice(more, zero, end, last)"
    assert_pass(
        PASS,
        graph_with_weights(text.format(21, "y = MatMul(x, turned)"), table=TABLE),
        graph_with_weights(text.format(24, after), table=padded(TABLE)),
        {"ids": RNG.integers(0, V, (2, 5))},
    )


def test_a_quantized_table() -> None:
    text = """g (int64[B,T] ids, int8[21,6] codes, float[21] scales) => (float[B,T,21] y) {
        table = DequantizeLinear<axis = 0>(codes, scales)
        x = Gather(table, ids)
        turned = Transpose<perm = [1, 0]>(table)
        y = MatMul(x, turned)
    }"""
    graph = graph_with_weights(text, codes=CODES, scales=SCALES)
    given_ids = {"ids": RNG.integers(0, V, (2, 5))}
    before = GraphRunner(graph).run(given_ids)["y"]
    (record,) = run_passes(graph, (PASS,))
    assert [f.became for f in record.findings] == ["24 channels, of which 21 are kept"]
    found = graph.graph.initializers
    np.testing.assert_array_equal(found["codes"].const_value.numpy(), padded(CODES))
    np.testing.assert_array_equal(found["scales"].const_value.numpy(), padded(SCALES, filling=1))
    assert graph.graph.outputs[0].shape == ("B", "T", 21)
    np.testing.assert_allclose(GraphRunner(graph).run(given_ids)["y"], before, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    channels=st.integers(9, 40),
    blocks=st.booleans(),
    turned=st.booleans(),
    four_bits=st.booleans(),
    zeros=st.booleans(),
)
def test_numbers_stay(
    channels: int, blocks: bool, turned: bool, four_bits: bool, zeros: bool
) -> None:
    rng = np.random.default_rng(channels)
    dtype, name = (ml_dtypes.int4, "int4") if four_bits else (np.int8, "int8")
    arrays = {
        "codes": rng.integers(-8, 8, (16, channels)).astype(dtype),
        "s": rng.uniform(1, 2, (2, channels) if blocks else channels).astype(np.float32),
        "z": rng.integers(-3, 4, (2, channels) if blocks else channels).astype(dtype),
    }
    if turned:
        arrays = {k: a.T.copy() if a.ndim == 2 else a for k, a in arrays.items()}
    along = (1 if blocks else 0) if turned else (0 if blocks else 1)
    declared = [
        f"{kind}[{','.join(map(str, arrays[k].shape))}] {k}"
        for k, kind in (("codes", name), ("s", "float"), ("z", name))
    ]
    factors = "codes, s, z" if zeros else "codes, s"
    graph = graph_with_weights(
        f"""g (float[B,16] x, {", ".join(declared if zeros else declared[:2])})
            => (float[B,{channels}] y) {{
            w = DequantizeLinear<axis = {along}, block_size = {8 if blocks else 0}>({factors})
            y = {"Gemm<transB = 1>" if turned else "MatMul"}(x, w)
        }}""",
        **{k: a for k, a in arrays.items() if zeros or k != "z"},
    )
    x = {"x": np.eye(16, dtype=np.float32)}
    before = GraphRunner(graph).run(x)["y"]
    (record,) = run_passes(graph, (PASS,))
    assert record.modified == (channels % 2 == 1)
    np.testing.assert_array_equal(GraphRunner(graph).run(x)["y"], before)


def product(nodes: str, inputs: str = "", **weights: np.ndarray) -> Graph:
    return graph_with_weights(
        f"g (float[B,6] x, float[6,21] w{inputs}) => (float[B,21] y) {{ {nodes} }}",
        w=TABLE.T.copy(),
        **weights,
    )


def test_an_even_or_a_small_number_is_no_site() -> None:
    for least in (22, 256):
        (record,) = run_passes(product("y = MatMul(x, w)"), (PadOddChannels(least=least),))
        assert not record.findings
    text = "g (float[B,6] x, float[6,22] w) => (float[B,22] y) { y = MatMul(x, w) }"
    graph = graph_with_weights(text, w=np.ones((6, 22), np.float32))
    assert not run_passes(graph, (PASS,))[0].findings


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("m = MatMul(x, w) r = ReduceSum<keepdims = 0>(w) y = Add(m, r)", "other than products"),
        ("c = Abs(w) y = MatMul(x, c)", "no weight of two axes"),
        ("y = Gemm(x, w, b)", "it has a bias"),
    ],
)
def test_what_would_see_the_channels_is_left(nodes: str, reason: str) -> None:
    inputs, weights = (", float[21] b", {"b": SCALES}) if " b)" in nodes else ("", {})
    assert_miss(PASS, product(nodes, inputs, **weights), reason)


def test_a_weight_multiplied_along_its_channels_is_left() -> None:
    graph = graph_with_weights(
        """g (float[B,6] x, float[6,21] w) => (float[B,6] y) {
            m = MatMul(x, w)
            t = Transpose<perm = [1, 0]>(w)
            y = MatMul(m, t)
        }""",
        w=TABLE.T.copy(),
    )
    assert_miss(PASS, graph, "multiplied along its channels elsewhere")


def test_a_table_looked_up_along_another_axis_is_left() -> None:
    graph = graph_with_weights(
        """g (int64[B] ids, float[6,21] w, float[B,6] x) => (float[B,21] e, float[B,21] y) {
            e = Gather(w, ids)
            y = MatMul(x, w)
        }""",
        w=TABLE.T.copy(),
    )
    assert_miss(PASS, graph, "looked up along another axis")
