"""Layers that would lose much with 8-bit activations take the finer scheme, on calibration data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.errors import ContractError, UsageError
from omnigraph.inspection.inspect import inspect
from omnigraph.passes.analysis.quantization.statistics import Observation, Statistics
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.outliers import outlier_channels


class Outliers(nn.Module):
    """Three layers; a few tokens are massive in what the second multiplies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        massive = 1 + 60 * (x[..., :1] > 2.2)
        h = torch.relu(self.first(x)) * massive
        return self.third(torch.tanh(self.second(h)))


def data():
    draw = np.random.default_rng(0)
    for _ in range(24):
        yield {"x": draw.standard_normal((1, 32, 64)).astype(np.float32)}


def export(tmp_path: Path, target: str, **given) -> omnigraph.ExportReport:
    example = {"x": torch.randn(2, 9, 64)}
    (report,) = omnigraph.export(
        Outliers().eval(), target, inputs=example, precision="int8", out=tmp_path / "net", **given
    )
    return report


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_the_sensitive_layer_keeps_its_activations(tmp_path: Path, target: str):
    report = export(tmp_path, target, calibration=data)
    assert set(report.quantization["finer"]) == {"second"}
    assert report.quantization["finer"]["second"] > 0.06
    assert report.quantization["preset"] == "balanced"
    # What it costs is measured where the target runs, and is not in the artifact.
    assert ("finer_milliseconds" in report.quantization) == (target == "openvino")
    stored = inspect(report.path)["quantization"]
    assert "finer_milliseconds" not in stored


def test_fast_keeps_none_and_the_contract_sees_it(tmp_path: Path):
    fast = Quantization(calibration=data, preset="fast")
    with pytest.raises(ContractError, match="Quantization changes output"):
        export(tmp_path, "openvino", quantization=fast)


def test_onnx_normalizes_the_tokens_of_a_sensitive_layer(tmp_path: Path):
    report = export(tmp_path, "onnx", calibration=data)
    assert not report.quantization["finer"]
    with omnigraph.load(tmp_path / "net") as session:
        x = next(data())["x"]
        found = session.run({"x": x})["output"]
    with torch.no_grad():
        expected = Outliers().eval()(torch.from_numpy(x)).numpy()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 0.03  # it is 0.1 and more without


def test_channels_far_larger_than_the_others_are_named_once(tmp_path: Path):
    draw = np.random.default_rng(0)
    usual = draw.standard_normal((200, 48)).astype(np.float32)
    massive = usual.copy()
    massive[3, [7, 30]] = 90.0, -60.0
    seen = {"a.query.weight_T": massive, "a.key.weight": massive, "b.weight": usual}
    statistics = Statistics({name: Observation.of(x) for name, x in seen.items()}, "min-max", "x")
    (layer,) = found = outlier_channels(statistics)
    assert layer in ("a.query", "a.key")
    assert found[layer]["channels"] == [7, 30] and 20 < found[layer]["times"] < 90


def test_a_preset_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no preset 'quick'"):
        Quantization(calibration=data, preset="quick")
