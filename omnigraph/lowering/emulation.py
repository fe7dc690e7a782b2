"""Runs a lowered Graph in onnxruntime, where the target's own runtime is not on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import OPSET, Graph
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16


@contextmanager
def run_lowered(artifact: Artifact, program: str) -> Iterator[Run]:
    """Give the function that runs the lowered Graph that a program was compiled from.

    Args:
        artifact: a directory, of a target that keeps this Graph, as ``tensorrt`` does.
    """
    yield emulated(artifact, program)


def emulated(artifact: Artifact, program: str) -> Run:
    """See `run_lowered`."""
    path = artifact.path / artifact.programs[program].files["lowered"]
    return GraphRunner(_runnable(ir.load(path))).run


def _runnable(graph: Graph) -> Graph:
    """The Graph in types that onnxruntime's CPU kernels compute with."""
    assert graph.opset_imports[""] == OPSET
    EmulateBfloat16()(graph)
    return graph
