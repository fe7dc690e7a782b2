"""Any values of a Graph, as onnxruntime computes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.graph import Graph

Feeds = Mapping[str, np.ndarray]


class Tap:
    """A copy of a Graph whose outputs are some of its values, ready to run.

    Args:
        graph: it is not changed.
        names: of the values to show.
    """

    def __init__(self, graph: Graph, names: Sequence[str]) -> None:
        #: The copy: only what the shown values need.
        self.graph = graph.clone()
        values = {v.name: v for v in _values(self.graph)}
        self.graph.graph.outputs.clear()
        self.graph.graph.outputs.extend(values[name] for name in names)
        _remove_dead(self.graph)
        self._runner = GraphRunner(self.graph)
        self._inputs = [value.name or "" for value in self.graph.graph.inputs]

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """The shown values by name, for one sample of the Graph's inputs."""
        return self._runner.run({name: feeds[name] for name in self._inputs})


def _values(graph: Graph) -> Iterator[ir.Value]:
    yield from graph.graph.inputs
    for node in graph.graph:
        yield from node.outputs


def _remove_dead(graph: Graph) -> None:
    """Remove nodes, inputs and weights that no output needs."""
    for node in reversed(list(graph.graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.graph.remove(node, safe=True)
    for value in [v for v in graph.graph.inputs if not v.uses() and not v.is_graph_output()]:
        graph.graph.inputs.remove(value)
    for name in [n for n, v in graph.graph.initializers.items() if not v.uses()]:
        graph.graph.initializers.pop(name)
