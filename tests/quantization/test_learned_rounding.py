"""Learned rounding: blocks keep their results better than with any rounding of single layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import omnigraph
from omnigraph.cli.main import main
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import UsageError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.inspection.inspect import inspect
from omnigraph.passes.analysis.quantization.linear_layers import LinearLayer, linear_layers
from omnigraph.passes.analysis.quantization.weight_rounding import (
    RoundedWeight,
    WeightGrid,
    round_weight,
)
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import common
from omnigraph.quantization.blocks import block_path, blocks_of
from omnigraph.quantization.learned_rounding import learn_rounding
from omnigraph.quantization.options import Quantization
from omnigraph.testing import graph_with_weights

GRIDS = [
    WeightGrid(ir.DataType.UINT4, 16),
    WeightGrid(ir.DataType.INT4, 16),
    WeightGrid(ir.DataType.UINT4, 24),  # the last block has fewer terms
    WeightGrid(ir.DataType.INT8),
]


def fused(traced, name: str, **settings: object) -> Graph:
    graph = traced(name, **settings).graph.clone()
    run_passes(graph, common())
    return graph


def tokens(samples: int) -> list[dict[str, np.ndarray]]:
    # A language has structure; of random tokens from all, nothing can be learned.
    rows = np.random.default_rng(5).integers(0, 12, (samples, 1, 32))
    return [{"input_ids": row, "attention_mask": np.ones_like(row)} for row in rows]


def own_weights(graph: Graph) -> list[LinearLayer]:
    return [linear for linear in linear_layers(graph) if linear.transpose is None]


def with_weights(graph: Graph, rounded: dict[str, RoundedWeight]) -> Graph:
    """The Graph with the dequantized weights; each keeps its place in the initializers."""
    copy = graph.clone()
    for linear in own_weights(copy):
        if (weight := rounded.get(linear.weight.name)) is not None:
            wide = weight.dequantized()
            array = np.ascontiguousarray(wide if linear.channel_axis == 1 else wide.T)
            linear.weight.const_value = ir.tensor(array, name=linear.weight.name)
    return copy


def error(graph: Graph, other: Graph, feeds: list[dict[str, np.ndarray]]) -> float:
    """The root mean square error of the first output, relative to it."""
    one, two = GraphRunner(graph), GraphRunner(other)
    pairs = [[next(iter(g.run(f).values())) for g in (one, two)] for f in feeds]
    wrong = sum(float(np.square(b - a).sum()) for a, b in pairs)
    return float(np.sqrt(wrong / sum(float(np.square(a).sum()) for a, _ in pairs)))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_other_inputs_lose_less_than_by_rounding_to_the_nearest(traced, grid: WeightGrid):
    graph = fused(traced, "forward", kind="encoder")
    feeds = tokens(80)
    layers = [(linear, grid) for linear in own_weights(graph)]
    learned = dict(learn_rounding(graph, layers, feeds[:64], steps=60))
    assert learned.keys() == {linear.weight.name for linear, _ in layers}
    nearest = {linear.weight.name: round_weight(linear.matrix, grid) for linear, _ in layers}
    others = feeds[64:]
    lost = error(graph, with_weights(graph, nearest), others)
    kept = error(graph, with_weights(graph, learned), others)
    # Eight bits leave little to learn in steps of this size.
    assert kept < (0.8 if grid.dtype.bitwidth == 4 else 0.95) * lost
    for linear, _ in layers:
        found, matrix = learned[linear.weight.name], linear.matrix
        low, high = grid.levels
        assert found.quantized.min() >= low and found.quantized.max() <= high
        assert found.scales.shape == nearest[linear.weight.name].scales.shape
        # A weight moves to a neighbour of its place on the grid, or to the end of a range.
        step = np.repeat(np.atleast_2d(found.scales), grid.block or len(matrix), axis=0)
        moved = np.abs(found.dequantized() - matrix) / step[: len(matrix)]
        inside = (found.quantized > low) & (found.quantized < high)
        assert moved[inside].max() <= 1.001


def test_it_gives_the_same_again(traced):
    graph = fused(traced, "forward", kind="decoder")
    feeds = tokens(4)
    layers = [(linear, GRIDS[0]) for linear in own_weights(graph)]
    one, two = (dict(learn_rounding(graph, layers, feeds, steps=3)) for _ in range(2))
    assert one.keys() == two.keys() and one
    for name in one:
        np.testing.assert_array_equal(one[name].quantized, two[name].quantized)
        np.testing.assert_array_equal(one[name].scales, two[name].scales)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_each_layer_is_in_the_block_of_its_number(traced, kind: str):
    graph = fused(traced, "forward", kind=kind)
    layers = own_weights(graph)
    blocks = blocks_of(graph, layers)
    assert sum(len(block.layers) for block in blocks) == len(layers)
    for block in blocks:
        assert {block_path(linear.layer) for linear in block.layers} == {block.path}
        made = {value for node in block.nodes for value in node.outputs}
        assert made.isdisjoint(block.inputs) and made.issuperset(block.outputs)


def test_paths_of_blocks():
    assert block_path("model.encoder.layer.11.attention.self.query") == "model.encoder.layer.11"
    assert block_path("/h.0/mlp/fc/MatMul") == "/h.0"
    assert block_path("lm_head") == "lm_head"
    assert block_path("layer1.conv2d.out") == "layer1.conv2d.out"


def test_what_torch_does_not_compute_is_left_out():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("w", "v")}
    text = """
        net (float[n, 16] x, float[16, 16] w, float[16, 16] v) => (float[n, 16] y)
        { a = MatMul(x, w) b = Mish(a) y = MatMul(b, v) }
        """
    graph = graph_with_weights(text, **weights)
    feeds = [{"x": rng.normal(size=(5, 16)).astype(np.float32)} for _ in range(3)]
    layers = [(linear, GRIDS[0]) for linear in linear_layers(graph)]
    assert not dict(learn_rounding(graph, layers, feeds, steps=2))
    for number, node in enumerate(graph.graph):  # each in a block of its own
        node.metadata_props[MODULE_KEY] = f"layers.{number}"
    layers = [(linear, GRIDS[0]) for linear in linear_layers(graph)]
    assert dict(learn_rounding(graph, layers, feeds, steps=2)).keys() == {"w", "v"}


def net():
    """Two layers in numbered blocks, and a head."""
    import torch

    torch.manual_seed(0)
    blocks = [torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU()) for _ in range(2)]
    return torch.nn.Sequential(*blocks, torch.nn.Linear(32, 8)), {"input": torch.randn(2, 5, 32)}


def samples() -> Iterator[dict[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    yield from ({"input": draw.standard_normal((1, 9, 32)).astype(np.float32)} for _ in range(8))


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_the_command_learns(tmp_path: Path, target: str, capsys):
    out = str(tmp_path / "a.omni")
    arguments = ["export", f"{__file__}:net", "--target", target, "--out", out]
    arguments += ["--precision", "int4-weights", "--group-size", "16", "--rounding", "learned"]
    assert main([*arguments, "--calibration", f"{__file__}:samples"]) == 0
    found = inspect(out)["quantization"]
    assert (found["learned"], found["compensated"]) == (3, 0)
    with omnigraph.load(out) as session:
        assert all(check.passed for check in session.verify())


def test_it_needs_samples(tmp_path: Path):
    with pytest.raises(UsageError, match="needs inputs like real ones"):
        Quantization(rounding="learned")
    with pytest.raises(UsageError, match="cannot be rounded by 'up'"):
        Quantization(rounding="up")
    saved = tmp_path / "ranges.npz"
    given = {"calibration": f"{__file__}:samples", "save": saved}
    omnigraph.export(
        f"{__file__}:net",
        "onnx",
        precision="int8",
        quantization=Quantization(**given),
        out=tmp_path / "one",
    )
    with pytest.raises(UsageError, match="needs inputs like real ones") as raised:
        omnigraph.export(
            f"{__file__}:net",
            "onnx",
            precision="int4-weights",
            quantization=Quantization(calibration=saved, rounding="learned"),
            out=tmp_path / "two",
        )
    assert "holds ranges" in str(raised.value.hint)
