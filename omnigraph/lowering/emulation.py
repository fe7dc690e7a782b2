"""Runs the ONNX files of artifacts in onnxruntime, node by node, whatever the target."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.external_weights import tensor_bytes
from omnigraph.graph import OPSET
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.passes.remove_rounding import RemoveRounding


@contextmanager
def run_lowered(artifact: Artifact, program: str) -> Iterator[Run]:
    """Give the function that runs the lowered Graph that a program was compiled from.

    Args:
        artifact: a directory, of a target that keeps this Graph, as ``tensorrt`` does.
    """
    graph = ir.load(artifact.path / artifact.programs[program].files["lowered"])
    assert graph.opset_imports[""] == OPSET
    EmulateBfloat16()(graph)
    yield GraphRunner(graph).run


def initializer_hashes(
    artifact: Artifact, program: str, role: str, sizes: Collection[int]
) -> set[str]:
    """The sha256 of each initializer of an ONNX file, of those of the given sizes in bytes."""
    graph = ir.load(artifact.path / artifact.programs[program].files[role])
    tensors = (value.const_value for value in graph.graph.initializers.values())
    return {
        hashlib.sha256(tensor_bytes(tensor)).hexdigest()
        for tensor in tensors
        if tensor is not None and tensor.nbytes in sizes
    }


@contextmanager
def run_file_unrounded(artifact: Artifact, program: str, role: str) -> Iterator[Run]:
    """Give the function that runs an ONNX file of an artifact without rounding any activation.

    Args:
        artifact: a directory.
        role: of the file: "model", or "lowered".
    """
    graph = ir.load(artifact.path / artifact.programs[program].files[role])
    RemoveRounding()(graph)
    yield GraphRunner(graph).run
