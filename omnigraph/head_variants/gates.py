"""Gates on heads that depend on the input: which are open, and whether a variant missed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph, inherit_provenance
from omnigraph.head_variants.sites import head_sites
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.insertion import infer_outputs
from omnigraph.passes.matching import made_by, with_scalar

#: The output of a variant: for each row, whether a gate was open for a head that it lacks.
MISSED = "missed_heads"
_MOVES = ("Transpose", "Unsqueeze", "Squeeze", "Reshape")


def add_missed(graph: Graph, removed: Mapping[str, tuple[int, ...]]) -> None:
    """Add an output [B] that is 0 where the gates of all removed heads are closed."""
    worst: list[ir.Value] = []
    for path, site in head_sites(graph)[0].items():
        gate = site.gate()
        if gate is not None and path in removed:
            index = _initializer(graph, f"{path}.removed", np.array(removed[path], np.int64))
            picked = _append(graph, "Gather", gate, index, axis=1)
            worst.append(_open(graph, picked, 1, 2, 3))
    missed = worst[0] if len(worst) == 1 else _append(graph, "Max", *worst)
    missed.name = MISSED
    graph.graph.outputs.append(missed)
    inherit_provenance(graph)


def gates_alone(graph: Graph, name: str) -> tuple[Graph, dict[str, float]] | None:
    """A Graph of the gates that depend on no attention; None if there are none.

    Where a gate compares a score with a threshold, the output is the score: a narrower precision
    changes a score by a rounding, but may change the gate from 0 to 1.

    Returns:
        The Graph, with an output [B, H] for each attention, named by its module path: the largest
        gate or score over all positions. And the threshold of each output: above it, a head is
        open.
    """
    graph = graph.clone()
    graph.graph.name = name
    opened: list[ir.Value] = []
    thresholds: dict[str, float] = {}
    for path, site in head_sites(graph)[0].items():
        gate = site.gate()
        if gate is None or _after_attention(gate):
            continue
        score, threshold = _score(graph, gate)
        value = _open(graph, gate, 2, 3) if score is None else _largest(graph, score, 2, 3)
        value.name, thresholds[path] = path, threshold
        opened.append(value)
    if not opened:
        return None
    del graph.graph.outputs[:]
    graph.graph.outputs.extend(opened)
    inherit_provenance(graph)
    run_passes(graph, [EliminateDeadCode()])
    for value in list(graph.graph.inputs):
        if not value.uses():
            graph.graph.inputs.remove(value)
    return graph, thresholds


def _score(graph: Graph, gate: ir.Value) -> tuple[ir.Value | None, float]:
    """The score that a gate compares with a threshold, in the gate's layout; and the threshold."""
    moves: list[ir.Node] = []
    value: ir.Value | None = gate
    while (node := made_by(value, "Cast", *_MOVES)) is not None:
        if node.op_type != "Cast":
            moves.append(node)
        value = node.inputs[0]
    compared = made_by(value, "Greater")
    found = with_scalar(compared) if compared is not None else None
    if found is None:
        return None, 0.0
    score, threshold = found
    for node in reversed(moves):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        rest = [v for v in node.inputs[1:] if v is not None]
        score = _append(graph, node.op_type, score, *rest, **attributes)
    return score, threshold


def _open(graph: Graph, gate: ir.Value, *axes: int) -> ir.Value:
    """The largest magnitude of a gate over some axes: 0 where it is closed."""
    return _largest(graph, _append(graph, "Abs", gate), *axes)


def _largest(graph: Graph, value: ir.Value, *axes: int) -> ir.Value:
    name = f"axes_{'_'.join(map(str, axes))}"
    over = graph.graph.initializers.get(name)
    if over is None:
        over = _initializer(graph, name, np.array(axes, np.int64))
    return _append(graph, "ReduceMax", value, over, keepdims=0)


def _initializer(graph: Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.graph.register_initializer(value)
    return value


def _append(graph: Graph, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
    node = ir.node(op_type, inputs, attributes)
    infer_outputs(node)
    graph.graph.append(node)
    return node.outputs[0]


def _after_attention(value: ir.Value) -> bool:
    """Whether a value depends on any attention."""
    waiting, seen = [value], set()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        if node.op_type == "Attention":
            return True
        seen.add(node)
        waiting += [v for v in node.inputs if v is not None]
    return False
