"""Keeps the keys and values of a cache as integers between calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.stored_weights import initializer
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter

#: The axis of the heads in keys and values [B, H, S, D], which have a scale each.
_HEADS = 1


@dataclass(frozen=True)
class QuantizeCaches(Pass):
    """Take the past and give the present in int8, a quarter of the memory of float32.

    Before, with keys [B, H, S, D] in float32::

        present = Concat(past, key)

    After, with a symmetric scale for each head::

        past_   = DequantizeLinear(past int8, scale)
        present = QuantizeLinear(Concat(past_, key), scale)

    Keys and values are rounded once: the past comes out of the next call with the same integers.

    Needs: the scales of each state. Leaves alone: states without scales, and states that are not
    float32 of four axes. Rounds: keys and values, once.

    Args:
        state: for each output, by name, the input that takes it on the next call.
        scales: float32 [H], by the output's name.
    """

    rounds: ClassVar[bool] = True

    state: Mapping[str, str] = field(default_factory=dict, hash=False)
    scales: Mapping[str, np.ndarray] = field(default_factory=dict, hash=False, repr=False)

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        inputs = {value.name: value for value in graph.graph.inputs}
        outputs = {value.name: value for value in graph.graph.outputs}
        changed = False
        for given, taken in self.state.items():
            if given in outputs and taken in inputs and given in self.scales:
                past, present = inputs[taken], outputs[given]
                if _is_cache(past) and _is_cache(present):
                    self._quantize(graph, past, present)
                    changed = True
        return changed

    def _quantize(self, graph: Graph, past: ir.Value, present: ir.Value) -> None:
        scale, zero = (
            initializer(graph, ir.tensor(array, name=f"{present.name}_{what}"))
            for what, array in (
                ("scale", self.scales[present.name or ""].astype(np.float32)),
                ("zero_point", np.zeros(len(self.scales[present.name or ""]), np.int8)),
            )
        )
        readers = list(past.uses())
        float32, int8 = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT8)
        past.type = int8
        if readers:
            before = Inserter(graph.graph[0])
            wide = before.op("DequantizeLinear", past, scale, zero, axis=_HEADS)
            wide.type, wide.shape = float32, past.shape
            for reader, index in readers:
                reader.replace_input_with(index, wide)
        place = list(graph.graph.outputs).index(present)
        name, node = present.name, ir.node("QuantizeLinear", [present, scale, zero], {"axis": 1})
        graph.graph.append(node)
        quantized = node.outputs[0]
        present.name, quantized.name = f"{name}_float", name
        quantized.type, quantized.shape = int8, present.shape
        graph.graph.outputs[place] = quantized


def _is_cache(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT and value.shape is not None and len(value.shape) == 4
