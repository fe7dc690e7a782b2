"""Programs for tests of the tensorrt target: from ONNX text to engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.lowering import Lowered, find_target
from omnigraph.passes.base import run_passes
from omnigraph.program import Dim, TensorSpec

TARGET: Any = find_target("tensorrt")
HEADS, SIZE = 2, 16
WIDTH = HEADS * SIZE


def graph_of(text: str, seed: int = 0, **sizes: int) -> Graph:
    """A Graph of ONNX text; float inputs without a name among their dimensions become weights."""
    text = text.format(**{"size": SIZE, "width": WIDTH, **sizes}) if sizes or "{{" in text else text
    graph = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 24]> {text.strip()}')
    rng = np.random.default_rng(seed)
    for value in list(graph.graph.inputs):
        if value.dtype == ir.DataType.FLOAT and all(isinstance(d, int) for d in value.shape):
            array = (rng.normal(size=value.shape.numpy()) / np.sqrt(WIDTH)).astype(np.float32)
            graph.graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            graph.graph.register_initializer(value)
    ShapeInferencePass()(graph)
    for position, node in enumerate(graph.graph):
        node.name = node.name or f"{node.op_type}_{position}"
        node.metadata_props[MODULE_KEY] = "layer"
    return graph


def lower(graph: Graph, precision: str = "fp16", name: str = "decode", **dims: Dim) -> Lowered:
    """A Graph as the driver hands it to the target."""
    run_passes(graph, TARGET.pipeline(precision))
    TARGET.check_nodes(name, graph, precision)
    return as_program(graph, name, **dims)


def as_program(graph: Graph, name: str = "decode", **dims: Dim) -> Lowered:
    """A Graph as it is, with what is said of its inputs and outputs."""
    inputs, outputs = (
        tuple(_spec(value) for value in values)
        for values in (graph.graph.inputs, graph.graph.outputs)
    )
    return Lowered(name, graph, inputs, outputs, dims)


def _spec(value: ir.Value) -> TensorSpec:
    shape = (d if isinstance(d, int) else d.value for d in value.shape)
    sums = {"total": "past + sequence"}
    return TensorSpec(value.name, value.dtype.numpy().name, tuple(sums.get(d, d) for d in shape))


def emit(program: Lowered, directory: Path, precision: str = "fp16", **options: str) -> Any:
    return TARGET.emit([program], directory, precision=precision, options=options)
