"""Weights as a pass stored them: within what rounding explains, and no fault is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.lowering import find_target
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.compress_weights import CompressWeights
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.remove_rounding import RemoveRounding
from omnigraph.quantization.stored_values import check_stored, stored_values, substitute
from omnigraph.testing import graph_with_weights

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((96, 40)).astype(np.float32) * RNG.uniform(0.1, 3, 40).astype("f")
TABLE = RNG.standard_normal((50, 96)).astype(np.float32)
TEXT = """g (int64[N] ids, float[50,96] table, float[96,40] w) => (float[N,40] y) {
    x = Gather(table, ids) y = MatMul(x, w) }"""

PASSES: dict[str, Callable[[], Pass]] = {
    "fp16 storage": CompressWeights,
    "fp16": lambda: ConvertPrecision("fp16"),
    "bf16": lambda: ConvertPrecision("bf16"),
    **{
        name: lambda name=name: InsertQdq(scheme=find_target("onnx").schemes[name])
        for name in ("int8-weights", "int4-weights")
    },
}


def rounded(name: str) -> tuple[Graph, Graph]:
    """A Graph before and after a pass."""
    before = graph_with_weights(TEXT, table=TABLE, w=WEIGHT)
    after = before.clone()
    run_passes(after, [PASSES[name]()])
    return before, after


def check(before: Graph, after: Graph) -> int:
    found = stored_values(before, after)
    for value, forms in found:
        for stored in forms:
            check_stored(value, stored, "a test")
    return len(found)


@pytest.mark.parametrize("name", PASSES)
def test_what_a_pass_rounds_is_within_its_bounds(name: str):
    before, after = rounded(name)
    assert check(before, after) >= (1 if name == "fp16 storage" else 2)


@pytest.mark.parametrize("name", PASSES)
def test_a_float_graph_with_stored_weights_computes_what_the_rounded_one_does(name: str):
    before, after = rounded(name)
    ids = {"ids": np.arange(50)}
    unlike = GraphRunner(before).run(ids)["y"]
    substitute(before, after)
    RemoveRounding()(after)
    found, expected = (GraphRunner(graph).run(ids)["y"] for graph in (before, after))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(unlike - expected).max() > 1e-4


def change(after: Graph, name: str, edit: Callable[[np.ndarray], None]) -> None:
    value = after.graph.initializers[name]
    assert value.const_value is not None and value.dtype is not None
    array = value.const_value.numpy().copy()
    edit(array)
    value.const_value = ir.tensor(array, dtype=value.dtype, name=name)


@pytest.mark.parametrize("name", ["fp16 storage", "fp16", "bf16"])
@pytest.mark.parametrize("factor", [0.0, 1.02, -1.0])
def test_a_wrong_row_of_halves_is_found(name: str, factor: float):
    before, after = rounded(name)

    def edit(array: np.ndarray) -> None:
        array[3] = (array[3].astype(np.float32) * factor).astype(array.dtype)

    change(after, "w_fp16" if name == "fp16 storage" else "w", edit)
    with pytest.raises(ContractError, match="Weight 'w'"):
        check(before, after)


def off_by_one(array: np.ndarray) -> None:
    array.reshape(-1)[5] += 1


def two_percent(array: np.ndarray) -> None:
    array.reshape(-1)[5] *= 1.02


def half_of_a_step(array: np.ndarray) -> None:
    array *= 0.5


def exchanged(array: np.ndarray) -> None:
    array[..., [0, 1]] = array[..., [1, 0]]


FAULTS = [
    ("int8-weights", "w_int8", off_by_one),
    ("int8-weights", "w_int8", exchanged),
    ("int8-weights", "w_int8_scale", two_percent),
    ("int8-weights", "w_int8_scale", half_of_a_step),
    ("int8-weights", "w_int8_scale", exchanged),
    ("int8-weights", "table_int8", off_by_one),
    ("int8-weights", "table_int8_scale", two_percent),
    ("int4-weights", "w_uint4_zero_point", off_by_one),
    ("int4-weights", "w_uint4_scale", half_of_a_step),
    ("int4-weights", "w_uint4_scale", exchanged),
    ("int4-weights", "w_uint4", exchanged),
]


@pytest.mark.parametrize(
    ("name", "tensor", "edit"), FAULTS, ids=lambda v: getattr(v, "__name__", v)
)
def test_a_wrong_code_scale_or_zero_point_is_found(name, tensor, edit):
    before, after = rounded(name)
    change(after, tensor, edit)
    with pytest.raises(ContractError, match=tensor[0]):
        check(before, after)


def test_a_constant_without_axes_is_compared_too():
    before = graph_with_weights(
        "g (float[N] x, float c) => (float[N] y) { y = Mul(x, c) }", c=np.float32(0.3).reshape(())
    )
    after = before.clone()
    run_passes(after, [ConvertPrecision("bf16")])
    assert check(before, after) == 1


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_infinities_and_numbers_beyond_a_half_are_where_rounding_puts_them(precision: str):
    text = "g (float[N,4] x, float[4] m) => (float[N,4] y) { y = Add(x, m) }"
    lowest = np.finfo(np.float32).min
    mask = np.array([0.0, -np.inf, lowest, np.nextafter(lowest, np.float32(0))], np.float32)
    before = graph_with_weights(text, m=mask)
    after = before.clone()
    run_passes(after, [ConvertPrecision(precision)])
    assert check(before, after) == 1


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_layer_that_is_used_twice_is_quantized(tmp_path: Path, target: str):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.shared = nn.Embedding(50, 32), nn.Linear(32, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.shared(2 * self.shared(self.embed(ids)).relu())

    ids = {"ids": torch.randint(50, (2, 6))}
    (report,) = omnigraph.export(
        Twice().eval(), target, inputs=ids, precision="int8", out=tmp_path / "net"
    )
    assert {row.weights for row in report.layers["forward"]} == {"int8"}
