"""A set of inputs goes past each number that positions are compared with; bisect knows all sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import omnigraph
from omnigraph.errors import ContractError
from omnigraph.exporting.options import ExportOptions
from omnigraph.frontends.resolve import resolve
from omnigraph.inspection.bisect import bisect
from omnigraph.passes.base import Pass
from omnigraph.tracing.compared_positions import compared_positions
from omnigraph.tracing.trace import trace

WINDOW = 90


class Windowed(nn.Module):
    """A causal mean over the last 90 tokens that are shown."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)

    def forward(self, input_ids, attention_mask):
        place = torch.arange(input_ids.shape[1])
        near = (place[None] <= place[:, None]) & (place[None] > place[:, None] - WINDOW)
        shown = near[None] & (attention_mask != 0)[:, None]
        scores = torch.zeros(shown.shape).masked_fill(~shown, torch.finfo(torch.float32).min)
        return {"y": scores.softmax(-1) @ self.embedding(input_ids)}


def net():
    ids = torch.randint(0, 50, (2, 6))
    return Windowed().eval(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class WidenWindow(Pass):
    """Claim to be exact, and let each token see one token more."""

    def apply(self, graph):
        for node in graph.graph:
            tensor = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1:] else None
            if node.op_type == "Sub" and tensor is not None and tensor.numpy().tolist() == WINDOW:
                before = ir.node("Constant", [], {"value": ir.tensor(tensor.numpy() + 1)})
                before.metadata_props.update(node.metadata_props)
                node.prepend(before)
                node.replace_input_with(1, before.outputs[0])
                return True
        return False


@dataclass(frozen=True)
class SpoilHiddenRows(Pass):
    """Claim to be exact, and add one to all outputs where a row has no token."""

    def apply(self, graph):
        last, mask = graph.graph.outputs[0].producer(), graph.graph.inputs[1]
        added = [
            ir.node("Constant", [], {"value": ir.tensor(np.array([1], np.int64))}),
            ir.node("Constant", [], {"value": ir.tensor(np.array(0, np.int64))}),
        ]
        counts = ir.node("ReduceSum", [mask, added[0].outputs[0]], {"keepdims": 0})
        least = ir.node("ReduceMin", [counts.outputs[0]], {"keepdims": 0})
        none = ir.node("Equal", [least.outputs[0], added[1].outputs[0]])
        one = ir.node("Cast", [none.outputs[0]], {"to": ir.DataType.FLOAT})
        read = last.inputs[1]
        total = ir.node("Add", [read, one.outputs[0]])
        total.outputs[0].type = read.type
        for node in (*added, counts, least, none, one, total):
            node.metadata_props.update(last.metadata_props)
            last.prepend(node)
        last.replace_input_with(1, total.outputs[0])
        return True


def test_the_width_of_a_window_is_found():
    (program,) = resolve(f"{__file__}:net").programs
    assert WINDOW in compared_positions(trace(program))


def test_a_fault_beyond_a_window_is_refused_and_named(tmp_path: Path):
    wrong = f"{__file__}:WidenWindow"
    omnigraph.export(f"{__file__}:net", "onnx", out=tmp_path / "right.omni")
    with pytest.raises(ContractError, match=f"on input set 'past-{WINDOW}'"):
        omnigraph.export(f"{__file__}:net", "onnx", out=tmp_path / "wrong.omni", passes=wrong)
    (found,) = bisect(f"{__file__}:net", "onnx", ExportOptions(passes=wrong))
    assert "widen-window" in found.stage


def test_bisect_finds_a_fault_that_only_a_hidden_row_shows(tmp_path: Path):
    wrong = f"{__file__}:SpoilHiddenRows"
    with pytest.raises(ContractError, match="on input set 'hidden-row'"):
        omnigraph.export(f"{__file__}:net", "onnx", out=tmp_path / "wrong.omni", passes=wrong)
    (found,) = bisect(f"{__file__}:net", "onnx", ExportOptions(passes=wrong))
    assert "spoil-hidden-rows" in found.stage
