"""Integers of four bits are stored as such, and symmetric ones without their zero points."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from omnigraph.graph import Graph, count_ops
from omnigraph.passes.base import run_passes
from omnigraph.passes.narrow_stored_weights import NarrowStoredWeights
from omnigraph.testing import assert_miss, assert_pass, graph_with_weights

RNG = np.random.default_rng(0)
K, N, BLOCK = 64, 24, 16
X = {"x": RNG.standard_normal((3, K)).astype(np.float32)}
SCALES = RNG.uniform(0.01, 0.02, (K // BLOCK, N)).astype(np.float32)
BLOCKS = f"w = DequantizeLinear<axis=0, block_size={BLOCK}>(q, s, z)"
GROUPS = f"[{K // BLOCK},{N}]"
TEXT = f"""g (float[B,{K}] x, uint8[{K},{N}] q, float{GROUPS} s, uint8{GROUPS} z)
    => (float[B,{N}] y) {{ {BLOCKS}  y = MatMul(x, w) }}"""
WHOLE = f"""g (float[B,{K}] x, uint8[{K},{N}] q, float[{N}] s, uint8[{N}] z)
    => (float[B,{N}] y) {{ w = DequantizeLinear<axis=1>(q, s, z)  y = MatMul(x, w) }}"""


def weights(most: int, middle: int | None = None) -> dict[str, np.ndarray]:
    """Integers up to ``most``, with zero points up to it or all ``middle``."""
    values = RNG.integers(0, most + 1, (K, N)).astype(np.uint8)
    values[0, 0] = most
    zeros = RNG.integers(0, most + 1, SCALES.shape).astype(np.uint8)
    return {"q": values, "s": SCALES, "z": zeros if middle is None else np.full_like(zeros, middle)}


def graph(text: str = TEXT, **given: np.ndarray) -> Graph:
    return graph_with_weights(text, **given)


def stored(after: Graph) -> dict[str, tuple[str, np.ndarray]]:
    """Type and values of each tensor of integers, by what it is."""
    found = {}
    for name, value in after.graph.initializers.items():
        tensor = value.const_value
        if tensor.dtype != ir.DataType.FLOAT:
            kind = "zeros" if name.endswith("zero_point") else "values"
            found[kind] = tensor.dtype.name.lower(), tensor.numpy().astype(np.int64)
    return found


@pytest.mark.parametrize(
    ("most", "middle", "dtype"),
    [(15, None, "uint4"), (15, 8, "int4"), (255, 128, "int8"), (3, 2, "uint4")],
)
def test_the_fewest_bits_hold_the_same_integers(most: int, middle: int | None, dtype: str):
    given = weights(most, middle)
    after = graph(**given)
    (record,) = run_passes(after, [NarrowStoredWeights()])
    assert record.findings[0].became == f"{dtype} values"
    found = stored(after)
    offset = middle if dtype.startswith("int") else 0
    assert found["values"][0] == dtype and ("zeros" in found) == (not offset)
    np.testing.assert_array_equal(found["values"][1] + offset, given["q"])
    if not offset:
        assert found["zeros"][0] == dtype
        np.testing.assert_array_equal(found["zeros"][1], given["z"])
    assert_pass(NarrowStoredWeights(), graph(**given), after, X)


def test_a_scale_for_each_channel():
    given = weights(15)
    given |= {"s": SCALES[0], "z": given["z"][0]}
    after = graph(WHOLE, **given)
    run_passes(after, [NarrowStoredWeights()])
    assert stored(after)["values"][0] == stored(after)["zeros"][0] == "uint4"
    assert_pass(NarrowStoredWeights(), graph(WHOLE, **given), after, X)


def test_a_weight_of_two_layers_is_stored_once():
    text = TEXT.replace(
        "y = MatMul(x, w)",
        f"a = MatMul(x, w)  {BLOCKS.replace('w =', 'v =')}  n = Neg(x)"
        "  b = MatMul(n, v)  y = Sub(a, b)",
    )
    after = graph(text, **weights(15))
    run_passes(after, [NarrowStoredWeights()])
    assert count_ops(after)["DequantizeLinear"] == 2 and len(after.graph.initializers) == 3


def test_what_is_left_alone_and_why():
    assert_miss(NarrowStoredWeights(), graph(**weights(255)), "need eight bits, and zero points")
    looked_up = TEXT.replace("=> (float", f"=> (uint8[1,{N}] r, float").replace(
        "y = MatMul", "i = Constant<value_ints=[3]>()  r = Gather(q, i)  y = MatMul"
    )
    assert_miss(NarrowStoredWeights(), graph(looked_up, **weights(15)), "read by something else")
    rounded = TEXT.replace(
        "y = MatMul(x, w)",
        """c = Constant<value = float {0.1}>()  o = Constant<value = uint8 {3}>()
        e = QuantizeLinear(x, c, o)  d = DequantizeLinear(e, c, o)  y = MatMul(d, w)""",
    )
    assert_miss(NarrowStoredWeights(), graph(rounded, **weights(15)), "with floats alone")
    given = weights(15)
    del given["s"]
    dynamic = TEXT.replace(f"float{GROUPS} s, ", "").replace("g (", f"g (float{GROUPS} s, ")
    assert_miss(NarrowStoredWeights(), graph(dynamic, **given), "no constants")
