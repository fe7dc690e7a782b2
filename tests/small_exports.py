"""Exports of small modules with dimensions of any name, tried at sizes of a test's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import omnigraph
from omnigraph.errors import InputError, TraceError
from omnigraph.exporting.options import ranges_of
from omnigraph.exporting.report import ExportReport
from omnigraph.frontends.module import program_from_module

Axes = Mapping[str, Mapping[int, str]]
#: The axes of an input [B, T, 8].
LENGTH: Axes = {"x": {0: "batch", 1: "length"}}


class Small(nn.Module):
    """A linear layer of 8, what a test adds to it, and a function of it and of the inputs."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module | Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.function = function
        for name, child in children.items():
            if isinstance(child, nn.Module):
                self.add_module(name, child)
            else:
                self.register_buffer(name, child)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.function(self, **inputs)


def export(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Axes | None,
    path: Path,
    dynamic: str = "",
) -> ExportReport:
    """Export a module to ONNX; ``dynamic`` is the text of the command line."""
    program = program_from_module(module, inputs, dynamic=axes)
    ranges = ranges_of(dynamic) if dynamic else None
    (report,) = omnigraph.export([program], "onnx", out=path, dynamic=ranges)
    return report


def refused(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    axes: Axes | None,
    path: Path,
    dynamic: str = "",
) -> str:
    """The message of an export that is refused, and writes nothing."""
    with pytest.raises(TraceError) as caught:
        export(module, inputs, axes, path, dynamic)
    assert not path.exists()
    message = str(caught.value)
    assert message.count("\n") == 1
    assert "\nhint: " in message
    return message


def option_of(message: str) -> str:
    """The ``--dynamic`` that a hint names."""
    found = re.search(r"--dynamic (?:'([^']+)'|(\S+?)(?=[;,.]?(?:\s|$)))", message)
    assert found is not None, message
    return found[1] or found[2]


def check(module: nn.Module, path: Path, *feeds: Mapping[str, Tensor]) -> None:
    """The artifact's numbers are torch's, for each of these inputs."""
    with omnigraph.load(path) as session:
        for given in feeds:
            with torch.no_grad():
                expected = module(**given)
            found: dict[str, Any] = session.run(**{k: t.numpy() for k, t in given.items()})
            tensors = expected if isinstance(expected, tuple) else (expected,)
            for name, tensor in zip(found, tensors, strict=True):
                assert found[name].shape == tuple(tensor.shape)
                assert np.allclose(found[name], tensor.numpy(), rtol=1e-4, atol=1e-5), given


def refuses(path: Path, expected: str, given: Mapping[str, Tensor]) -> None:
    """The artifact refuses inputs of these sizes, and says the range."""
    with omnigraph.load(path) as session, pytest.raises(InputError, match=expected):
        session.run(**{name: tensor.numpy() for name, tensor in given.items()})
