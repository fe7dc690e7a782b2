"""Artifacts and traces that many tests share, made once for each test process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import omnigraph
from omnigraph.contract.reference import Reference
from omnigraph.graph import Graph
from omnigraph.models import OmniNet
from omnigraph.program import Program


@pytest.fixture(scope="session")
def tiny_artifacts(tmp_path_factory) -> dict[str, Path]:
    """A tiny decoder as a single-file artifact of each target that runs on CPUs."""
    out = tmp_path_factory.mktemp("tiny")
    reports = omnigraph.export(
        "omninet",
        ["onnx", "openvino"],
        config="tiny",
        settings={"kind": "decoder", "positions": "rotary"},
        out=out,
    )
    return {report.target: report.path for report in reports}


@dataclass(frozen=True)
class Traced:
    """A program of a tiny OmniNet whose weights are all random, its Graph, and torch's numbers."""

    model: OmniNet
    program: Program
    graph: Graph
    references: Sequence[Reference]


@pytest.fixture(scope="session")
def traced() -> Callable[..., Traced]:
    """Traces a program of a tiny OmniNet, by its name and fields of its configuration."""
    return _traced


@cache
def _traced(name: str, **settings: object) -> Traced:
    import torch

    from omnigraph.input_sets import contract_cases
    from omnigraph.models import OmniNetConfig
    from omnigraph.models.programs import programs
    from omnigraph.tracing.trace import reference_for, trace

    model = OmniNet(OmniNetConfig.named("tiny", **settings), initialize=False).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # no bias or norm is at a value that hides an error
        for path, parameter in model.named_parameters():
            around = 1.0 if "norm" in path and path.endswith("weight") else 0.0
            # Queries and keys are large enough for attention to choose, and not only to average.
            spread = 0.3 if ".query." in path or ".key." in path else 0.1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(around + spread * noise)
    program = next(p for p in programs(model) if p.name == name)
    references = [reference_for(program, case) for case in contract_cases(program)]
    return Traced(model, program, trace(program), references)
