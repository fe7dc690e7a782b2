"""An export leaves the caller's modules in the modes they had, whether it succeeds or fails."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.errors import ContractError, TraceError
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.resolve import resolve
from omnigraph.frontends.training_modes import TrainingModes
from omnigraph.inspection.bisect import bisect

INPUTS = {"x": torch.randn(2, 8)}


class Net(nn.Module):
    """A frozen norm beside a layer with dropout; it merges two weights while it is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.more = nn.Linear(8, 8), nn.Parameter(torch.ones(8))
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8).eval()
        self.merged: list[bool] = []

    def train(self, mode: bool = True):
        self.merged.append(not mode)
        return super().train(mode)

    def forward(self, x):
        return self.norm(self.dropout(self.layer(x))) + self.more


def modes(module: nn.Module) -> dict[str, bool]:
    return {name: each.training for name, each in module.named_modules()}


def export(model: Any, path: Path, **options: Any) -> None:
    omnigraph.export(model, "onnx", out=path / "net.omni", **options)


def looks(net: Net, path: Path) -> dict[str, Callable[[], object]]:
    program = program_from_module(Net(), INPUTS)
    return {
        "export": lambda: export(net, path, inputs=INPUTS),
        "a pair": lambda: export((net, INPUTS), path),
        "a program": lambda: export([omnigraph.Program(**{**vars(program), "module": net})], path),
        "inspect": lambda: omnigraph.inspect((net, INPUTS)),
        "bisect": lambda: bisect((net, INPUTS), "onnx"),
    }


@pytest.mark.parametrize("how", ["export", "a pair", "a program", "inspect", "bisect"])
def test_the_mode_of_every_module_is_restored(how: str, tmp_path: Path):
    net = Net()
    before, weights = modes(net), {k: v.clone() for k, v in net.state_dict().items()}
    assert before == {"": True, "layer": True, "dropout": True, "norm": False}
    looks(net, tmp_path)[how]()
    assert modes(net) == before
    assert net.merged[-2:] == [True, False]  # once into eval mode, and once out of it
    assert net.merged.count(True) == 1
    assert all(torch.equal(v, weights[k]) for k, v in net.state_dict().items())


def test_the_modes_are_restored_where_the_export_fails(tmp_path: Path):
    net = Net()
    before = modes(net)
    with pytest.raises(ContractError):
        export(net, tmp_path, inputs=INPUTS, rtol=1e-12)
    assert modes(net) == before
    with pytest.raises(TraceError, match="does not run on its own example"):
        export(net, tmp_path, inputs={"y": torch.ones(2, 8)})
    assert modes(net) == before
    with pytest.raises(omnigraph.OmniGraphError, match="has no program"):
        export(net, tmp_path, inputs=INPUTS, programs=["decode"])
    assert modes(net) == before


def test_a_module_of_the_caller_that_a_factory_gives_is_restored(tmp_path: Path, monkeypatch):
    (tmp_path / "lent.py").write_text("def net():\n    return NET, INPUTS\n")
    monkeypatch.syspath_prepend(tmp_path)
    import lent  # type: ignore[import-not-found]

    lent.NET, lent.INPUTS = Net(), INPUTS
    export("lent:net", tmp_path)
    assert modes(lent.NET)["dropout"]


def test_no_module_is_kept_alive():
    with TrainingModes() as kept:
        source = resolve((Net(), INPUTS), modes=kept)
        module = weakref.ref(source.programs[0].module)
        assert not any(modes(source.programs[0].module).values())
        del source
        gc.collect()
        assert module() is None


def test_the_module_of_an_exported_program_has_one_mode(tmp_path: Path):
    named = {"input": INPUTS["x"]}
    exported = torch.export.export(nn.Linear(8, 8), (), named)
    export((exported.module(), named, {}), tmp_path)
