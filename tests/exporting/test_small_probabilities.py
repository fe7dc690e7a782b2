"""A model that answers 1e-6 to all random inputs hides no fault of a pass."""

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
from omnigraph.passes.base import Pass


class Detector(nn.Module):
    """Probabilities of about 1e-6, of logits around -14."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(50, 64), nn.Linear(64, 1)

    def forward(self, input_ids):
        return {"found": (self.head(self.embedding(input_ids)) - 14).sigmoid()}


def net():
    return Detector().eval(), {"input_ids": torch.randint(0, 50, (2, 6))}


@dataclass(frozen=True)
class SpoilHead(Pass):
    """Claim to be exact, and make the weight of the head 1% larger."""

    def apply(self, graph):
        weight = next(
            v for name, v in graph.graph.initializers.items() if name.startswith("head.weight")
        )
        wrong = weight.const_value.numpy() * np.float32(1.01)
        weight.const_value = ir.tensor(wrong, name=weight.name)
        return True


@pytest.mark.parametrize(
    ("target", "precision"),
    [("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "int8-weights")],
)
def test_one_percent_of_the_logits_is_refused(tmp_path: Path, target: str, precision: str):
    given = {"precision": precision, "out": tmp_path / "net.omni"}
    omnigraph.export(f"{__file__}:net", target, **given)
    with pytest.raises(ContractError, match=r"Output 'found'.* differs from"):
        omnigraph.export(f"{__file__}:net", target, passes=f"{__file__}:SpoilHead", **given)
