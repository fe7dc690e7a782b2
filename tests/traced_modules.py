"""Small torch modules, traced and compared with torch as an export does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omnigraph.contract.graph_check import check_graph
from omnigraph.frontends.module import program_from_module
from omnigraph.graph import Graph
from omnigraph.input_sets import contract_cases
from omnigraph.program import Program
from omnigraph.tracing.trace import check_trace, output_specs, reference_for, trace


class Module(nn.Module):
    """A linear layer, and a function of it and of named inputs."""

    def __init__(self, function: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, **inputs: Tensor) -> Any:
        return self.function(self, **inputs)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 7, 8))


def compile_(program: Program) -> Graph:
    """Trace and compare, as an export does."""
    graph = trace(program)
    check_graph(graph, "trace")
    check_trace(program, graph, [reference_for(program, c) for c in contract_cases(program)])
    return graph


def compiled(function: Callable[..., Any], inputs: Mapping[str, Tensor], **options: Any) -> Graph:
    return compile_(program_from_module(Module(function), inputs, **options))


def outputs(graph: Graph) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {spec.name: (spec.dtype, spec.shape) for spec in output_specs(graph)}


WHOLE = ("float32", ("batch", "sequence", 8))
