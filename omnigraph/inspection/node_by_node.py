"""Computes every node of a Graph from recorded values, so that no error is carried to the next.

Each node reads the recorded values instead of what the nodes before it computed. So the first node
that differs is the one at fault, however small its part in the outputs is, and a value that is
rounded to a step is rounded to the same step in both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.tolerance import Deviation, Tolerance, deviation
from omnigraph.graph import Graph
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16

Values = Mapping[str, np.ndarray]
_GIVEN = "::given"
#: Numbers beyond a half type are alike: the ways to hide a token are one.
_LARGEST = float(np.finfo(np.float16).max)
#: Numbers beyond this hide a token: beside them, no error of a bias would show.
_HIDES = 1e4


def first_parted_node(
    before: Graph, after: Graph, inputs: Sequence[Values], tolerance: Tolerance
) -> ir.Node | None:
    """The first node of a Graph whose own result differs from that of the same name before.

    A node that has only new results is computed with the next node that has one before.

    Args:
        before: a Graph, with the names of ``after`` for the values that both have.
        inputs: of the program; each set is tried.
        tolerance: of a single node.

    Raises:
        GraphError: onnxruntime does not run one of the Graphs.
    """
    parted = {n for n, d in _differences(before, after, inputs) if not d.within(tolerance)}
    return next((node for node in after.graph if node in parted), None)


def most_parted_node(
    before: Graph, after: Graph, inputs: Sequence[Values], tolerance: Tolerance
) -> ir.Node | None:
    """The node whose own result differs most; see `first_parted_node`."""
    worst: tuple[float, ir.Node | None] = (tolerance.rms, None)
    for node, found in _differences(before, after, inputs):
        if found.rms > worst[0]:
            worst = found.rms, node
    return worst[1]


def _differences(
    before: Graph, after: Graph, inputs: Sequence[Values]
) -> Iterator[tuple[ir.Node, Deviation]]:
    shown = showing_all(before)
    record = GraphRunner(_runnable(shown.clone()))
    names = {value.name or "" for value in shown.graph.outputs}
    one, other = NodeRunner(before, names), NodeRunner(after, names)
    for feeds in inputs:
        recorded = record.run(feeds)
        yield from compared(after, other.run(recorded, feeds), one.run(recorded, feeds))


class NodeRunner:
    """A Graph whose nodes read recorded values.

    Args:
        graph: it is not changed.
        names: of the values that will be recorded.

    Raises:
        GraphError: onnxruntime does not load the Graph.
    """

    def __init__(self, graph: Graph, names: set[str]) -> None:
        shown = showing_all(graph)
        self._given = _read_recorded(shown, names)
        self._runner = GraphRunner(_runnable(shown))

    def run(self, recorded: Values, feeds: Values) -> dict[str, np.ndarray]:
        """The results of all nodes by name, from recorded results and the inputs of the program."""
        given = {value.name or "": _as(recorded[n], value) for n, value in self._given.items()}
        return self._runner.run({**feeds, **given})


def compared(graph: Graph, found: Values, expected: Values) -> Iterator[tuple[ir.Node, Deviation]]:
    """The deviation of each result that both have, in the order of a Graph."""
    for node in graph.graph:
        for value in node.outputs:
            name = value.name or ""
            if name in found and name in expected:
                yield node, _deviation(found[name], expected[name])


def showing_all(graph: Graph, names: Collection[str] | None = None) -> Graph:
    """A copy of a Graph that outputs the results of its nodes: all of the types that numpy has.

    Nodes of subgraphs are left out. Weights are not copied.

    Args:
        names: of the results to show instead, of any type.
    """
    shown = graph.clone()
    taken = set(shown.graph.outputs)
    for node in shown.graph:
        for value in node.outputs:
            asked = _is_of_numpy(value) if names is None else value.name in names
            if value.name and asked and value not in taken:
                shown.graph.outputs.append(value)
    return shown


def _is_of_numpy(value: ir.Value) -> bool:
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return False
    return value.dtype.numpy().type.__module__ == "numpy"


def _deviation(found: np.ndarray, expected: np.ndarray) -> Deviation:
    if found.dtype.kind in "biu" and found.dtype == expected.dtype:
        return deviation(found, expected)
    found, expected = _bounded(found), _bounded(expected)
    whole, shown = deviation(found, expected), np.abs(expected) < _HIDES
    if found.shape != expected.shape or shown.all():
        return whole
    return whole.worst(deviation(found[shown], expected[shown]))


def _bounded(array: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(array.astype(np.float32), -_LARGEST, _LARGEST))


def _as(array: np.ndarray, value: ir.Value) -> np.ndarray:
    """A recorded result in the type of an input."""
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if value.dtype.is_floating_point():
        most = float(ml_dtypes.finfo(dtype).max)
        return np.asarray(np.clip(array.astype(np.float32), -most, most), dtype)
    return np.asarray(array, dtype)


def _read_recorded(graph: Graph, names: set[str]) -> dict[str, ir.Value]:
    """Let each node read new inputs of the Graph in place of recorded results; these, by name."""
    given: dict[str, ir.Value] = {}
    for node in graph.graph:
        for index, value in enumerate(node.inputs):
            if value is None or value.name not in names or not _is_computed(value):
                continue
            if value.name not in given:
                # Without a shape: the Graph may know a wrong one.
                new = ir.Value(name=value.name + _GIVEN, type=value.type)
                graph.graph.inputs.append(new)
                given[value.name] = new
            node.replace_input_with(index, given[value.name])
    return given


def _is_computed(value: ir.Value) -> bool:
    maker = value.producer()
    return maker is not None and maker.op_type != "Constant" and _is_of_numpy(value)


def _runnable(graph: Graph) -> Graph:
    EmulateBfloat16()(graph)
    return graph
