"""Programs for tests of the openvino target: from ONNX text to an IR that OpenVINO runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov

from omnigraph.lowering.base import Emission, Lowered
from omnigraph.lowering.openvino.target import TARGET
from omnigraph.passes.base import run_passes
from omnigraph.program import Dim, TensorSpec
from omnigraph.testing import graph_from_signature

CORE = ov.Core()


def program(
    text: str,
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    name: str = "forward",
    dims: Mapping[str, Dim] | None = None,
) -> Lowered:
    """A program of ONNX text, "inputs => outputs { nodes }", with named constants."""
    graph = graph_from_signature(text, constants or {}, name=name)
    specs = [
        tuple(_spec(value) for value in values)
        for values in (graph.graph.inputs, graph.graph.outputs)
    ]
    return Lowered(name, graph, specs[0], specs[1], dims or {})


def _spec(value: ir.Value) -> TensorSpec:
    assert value.shape is not None and value.dtype is not None and value.name is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(value.name, value.dtype.numpy().name, shape)


def emit(programs: Sequence[Lowered], directory: Path, precision: str = "fp32") -> Emission:
    """Take programs all the way, as an export does."""
    directory.mkdir(exist_ok=True)
    for lowered in programs:
        run_passes(lowered.graph, TARGET.pipeline(precision))
        TARGET.check_nodes(lowered.name, lowered.graph, precision)
    return TARGET.emit(programs, directory, precision=precision, options={})


def read(directory: Path, name: str = "forward") -> ov.Model:
    weights_file = directory / "weights.bin"
    if not weights_file.exists():
        return CORE.read_model(directory / f"{name}.xml")
    return CORE.read_model(directory / f"{name}.xml", weights_file)


def compiled(directory: Path, name: str = "forward", hint: str = "f32") -> ov.CompiledModel:
    config = {"INFERENCE_PRECISION_HINT": hint}
    return CORE.compile_model(read(directory, name), "CPU", config)


def run(model: ov.CompiledModel, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = model(dict(feeds))
    return {port.get_any_name(): result[port] for port in model.outputs}
