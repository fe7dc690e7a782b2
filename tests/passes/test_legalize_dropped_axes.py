"""legalize-dropped-axes: OpenVINO rounds a reduction with the scales of its own channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.passes.legalize_dropped_axes import LegalizeDroppedAxes
from omnigraph.quantization.options import Quantization
from omnigraph.testing import assert_miss, assert_pass, graph_from_text

PASS = LegalizeDroppedAxes()
BEFORE = """g (float[N,5,3] x) => (uint8[N,3] y)
    { a = Constant<value_ints=[1]>()  s = Constant<value_float=0.1>()
      m = ReduceMean<keepdims=0>(x, a)  p = Mul(m, s)  y = QuantizeLinear(p, s) }"""
AFTER = BEFORE.replace(
    "m = ReduceMean<keepdims=0>(x, a)",
    "k = ReduceMean<keepdims=1, noop_with_empty_axes=0>(x, a)  m = Squeeze(k, a)",
)
INPUTS = {"x": np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)}


def test_the_axes_are_dropped_behind_it():
    assert_pass(PASS, graph_from_text(BEFORE), graph_from_text(AFTER), INPUTS)


@pytest.mark.parametrize(
    ("old", "new"), [("keepdims=0", "keepdims=1"), ("QuantizeLinear(p, s)", "Cast<to=2>(p)")]
)
def test_others_are_left_alone(old: str, new: str):
    assert_pass(PASS, graph_from_text(BEFORE.replace(old, new)), None, INPUTS)


def test_all_axes():
    whole = "g (float[N,3] x) => (uint8 y) { s = Constant<value_float=0.1>() "
    whole += "m = ReduceSum<keepdims=0>(x)  y = QuantizeLinear(m, s) }"
    assert_miss(PASS, graph_from_text(whole), "it reduces all axes")


class Pooled(nn.Module):
    """The mean of tokens whose channels are of unlike size, in two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(200, 64)
        with torch.no_grad():
            self.table.weight.mul_(torch.exp(torch.randn(64)))
        self.layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[batch, 32] of ids [batch, sequence]."""
        return self.layers(self.table(input_ids).mean(1))


def test_a_pooled_embedding_in_int8_on_openvino(tmp_path: Path):
    ids = np.random.default_rng(7).integers(0, 200, (40, 4, 20))
    net = Pooled().eval()
    omnigraph.export(
        net,
        "openvino",
        precision="int8",
        inputs={"input_ids": torch.from_numpy(ids[0])},
        quantization=Quantization(calibration=lambda: ({"input_ids": each} for each in ids)),
        out=tmp_path / "net",
    )
    with omnigraph.load(tmp_path / "net") as session:
        (found,) = session.run({"input_ids": ids[0]}).values()
    expected = net(torch.from_numpy(ids[0])).detach().numpy()
    # Two layers, each with a noise of 1% to 2%; it was 12% to 27%.
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.05
