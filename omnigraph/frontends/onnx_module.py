"""An ONNX file as a module: its Graph is read, not traced, and its numbers are the file's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from omnigraph.contract.graph_check import FileRunner
from omnigraph.frontends.onnx_file import graph_of_file
from omnigraph.graph import Graph
from omnigraph.program import Program


class OnnxModule(nn.Module):
    """Calls an ONNX file by input names, in onnxruntime with its optimizations off.

    Its outputs are the reference of the contract, as those of a torch module are.

    Args:
        path: the file.
        runner: runs it.
        renamed: the file's own names of dimensions to those that its program has for them.
        shapes: of each output in some run.
    """

    def __init__(
        self,
        path: Path,
        runner: FileRunner,
        renamed: Mapping[str, str],
        shapes: Mapping[str, Sequence[int]],
    ) -> None:
        super().__init__()
        self.path, self._runner, self._renamed, self._shapes = path, runner, renamed, shapes

    def graph(self, program: Program) -> Graph:
        """The file as a Graph, at our opset, with a program's dimensions; weights stay lazy."""
        graph = graph_of_file(self.path, program.inputs, self._renamed, program.fixed, self._shapes)
        graph.graph.name = program.name
        return graph

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name, for inputs by name."""
        feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
        found = self._runner.run(feeds)
        return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}
