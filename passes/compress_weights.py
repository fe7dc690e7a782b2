"""Stores float32 weights as float16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass

_LEAST_ELEMENTS = 1024


@dataclass(frozen=True)
class CompressWeights(Pass):
    """Store float32 weights as float16 behind a Cast, which the runtime computes once, at load.

    before:  MatMul(x, weight float32)
    after:   MatMul(x, Cast[to=FLOAT](weight float16))

    Needs: weights as initializers. Leaves alone: tensors under 1,024 elements (norms, biases),
    whose size does not matter and whose rounding does. Rounds: each weight to a float16, once.
    """

    rounds: ClassVar[bool] = True

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        wide = [
            value
            for value in graph.graph.initializers.values()
            if value.dtype == ir.DataType.FLOAT
            and value.const_value is not None
            and value.const_value.size >= _LEAST_ELEMENTS
            and not value.is_graph_output()
        ]
        for value in wide:
            _compress(graph, value)
        return bool(wide)


def _compress(graph: Graph, value: ir.Value) -> None:
    tensor = value.const_value
    assert tensor is not None and value.name is not None
    name = f"{value.name}_fp16"
    narrow = ir.LazyTensor(
        lambda: ir.tensor(tensor.numpy().astype("float16"), name=name),
        dtype=ir.DataType.FLOAT16,
        shape=ir.Shape(tensor.shape),  # type: ignore[arg-type]
        name=name,
    )
    stored = ir.Value(
        name=name, shape=value.shape, type=ir.TensorType(narrow.dtype), const_value=narrow
    )
    graph.graph.register_initializer(stored)
    cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}, name=f"{value.name}_widen")
    cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
    first = next(iter(graph.graph))
    first.prepend(cast)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    graph.graph.initializers.pop(value.name)
    cast.outputs[0].name = value.name
