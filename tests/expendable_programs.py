"""A program that can be traced, and one that cannot, and need not be."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from omnigraph.frontends.module import program_from_module
from omnigraph.program import Program


class Net(nn.Module):
    """A linear layer, and a decision by a value, which no trace holds."""

    def __init__(self, *, decides: bool) -> None:
        super().__init__()
        self.layer, self.decides = nn.Linear(8, 8), decides

    def forward(self, x: Tensor) -> Tensor:
        if self.decides and x.sum() > 0:
            return self.layer(x) + 1
        return self.layer(x)


def programs(*, expendable: bool = True) -> list[Program]:
    forward, step = (
        program_from_module(Net(decides=decides), {"x": torch.randn(2, 7, 8)}, name=name)
        for name, decides in (("forward", False), ("step", True))
    )
    return [forward, replace(step, expendable=expendable)]
