"""Runs an ONNX file to see whether it takes inputs of some sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.time_limit import TimeLimitError
from omnigraph.errors import OmniGraphError, UsageError
from omnigraph.frontends.onnx_file import read_onnx
from omnigraph.graph import Graph, describe
from omnigraph.program import TensorSpec, evaluate_dim

_POOLS = frozenset(("AveragePool", "MaxPool", "LpPool"))
#: Products of weights and positions of one try: seconds on one core.
_MOST_PRODUCTS = 10**10
#: Elements of the inputs of one try.
_MOST_ELEMENTS = 1 << 22
#: A convolution is mostly of an image that others before it made smaller, by eight to each side.
_SMALLER = 64


class OnnxProbe:
    """An ONNX file that is run at one size after another.

    Beside errors, these are faults: an output that is not a number; one that is empty, though it
    was not at the first sizes that ran; and a pooling window that is larger than what it is moved
    over, for which the standard defines no result, and onnxruntime gives one.

    Raises:
        GraphError: onnxruntime does not load the file.
    """

    def __init__(self, path: Path) -> None:
        graph = read_onnx(path)
        self._outputs = [value.name or "" for value in graph.graph.outputs]
        self._windows = _windows(graph)
        self._layers = _layers(graph)
        #: Of the first run: the shape of each output, and products of weights with values.
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.products = 0
        self._runner = GraphRunner(graph)
        #: Outputs that are empty in the first run.
        self._usual: set[str] | None = None

    def fault(self, feeds: Mapping[str, np.ndarray]) -> str | None:
        """What is wrong with a run on these inputs, or None.

        Raises:
            TimeLimitError: it did not end. Other sizes would take as long, each of them.
            UsageError: the time that a run may take is none.
        """
        try:
            found = self._runner.run(feeds)
        except (TimeLimitError, UsageError):
            raise
        except OmniGraphError as error:
            return str(error.found or error)
        for window in self._windows:
            if (reason := window.fault(found[window.shape])) is not None:
                return reason
        outputs = {name: found[name] for name in self._outputs}
        for name, output in outputs.items():
            if output.dtype.kind == "f" and np.isnan(output).any():
                return f"output {name!r} is not a number"
        empty = {f"output {name!r} is empty" for name, output in outputs.items() if not output.size}
        if self._usual is None:
            self._usual = empty
            self.shapes = {name: found[name].shape for name in self._outputs}
            self.products = sum(math.prod(found[n].tolist()) * k for n, k in self._layers)
        return min(empty - self._usual, default=None)


class _Window:
    """A pooling window of some length on each axis, and the output that has its input's shape."""

    def __init__(self, node: ir.Node, shape: str, lengths: list[int], pads: list[int]) -> None:
        self.shape = shape
        self._node, self._lengths, self._pads = describe(node), lengths, pads

    def fault(self, shape: np.ndarray) -> str | None:
        """Why the window does not fit into an input of this shape, or None."""
        axes = len(self._lengths)
        for axis, (size, length) in enumerate(zip(shape[-axes:], self._lengths, strict=True)):
            room = int(size) + self._pads[axis] + self._pads[axis + axes]
            if length > room:
                return f"{self._node} has a window of {length} over {room} elements"
        return None


def _windows(graph: Graph) -> list[_Window]:
    """The pooling windows of a Graph, which gets an output for the shape of the input of each."""
    found: list[_Window] = []
    for node in [node for node in graph.graph if node.op_type in _POOLS]:
        kernel = list(node.attributes.get_ints("kernel_shape", []))
        pads = list(node.attributes.get_ints("pads", [0] * 2 * len(kernel)))
        if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME") or not kernel:
            continue
        dilations = list(node.attributes.get_ints("dilations", [1] * len(kernel)))
        lengths = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        name = _with_shape_of(graph, node.inputs[0], f"omnigraph_window_{len(found)}")
        found.append(_Window(node, name, lengths, pads))
    return found


def _layers(graph: Graph) -> list[tuple[str, int]]:
    """For each product with weights: an output for the shape of one side, and how often it counts.

    Each result of a convolution is a sum over the weights of one channel; each element before a
    MatMul is multiplied with a row.
    """
    found: list[tuple[str, int]] = []
    for node in [
        n for n in graph.graph if n.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")
    ]:
        weight = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] else None
        if weight is None:
            continue
        shape = list(weight.shape.numpy())
        forward = node.op_type == "Conv"
        name = f"omnigraph_layer_{len(found)}"
        _with_shape_of(graph, node.outputs[0] if forward else node.inputs[0], name)
        turned = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
        found.append((name, shape[0] if turned else math.prod(shape[1:])))
    return found


def _with_shape_of(graph: Graph, value: ir.Value | None, name: str) -> str:
    """Give a Graph an output of this name: the shape of one of its values."""
    shape = ir.node("Shape", [value], name=name)
    shape.outputs[0].name = name
    shape.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    graph.graph.append(shape)
    graph.graph.outputs.append(shape.outputs[0])
    return name


class Cost:
    """How much work a file is at some sizes, as far as its weights tell."""

    def __init__(self, graph: Graph) -> None:
        self.weights = 0
        for part in graph.graphs():
            for value in part.initializers.values():
                shape = value.const_value.shape.numpy() if value.const_value is not None else ()
                count = math.prod(shape) if len(shape) > 1 else 0
                self.weights += count // (_SMALLER if len(shape) > 2 else 1)

        self._products = 0.0

    def measure(self, products: int, specs: list[TensorSpec], sizes: Mapping[str, int]) -> None:
        """Take the products of a run at these sizes as the measure for others."""
        self._products = products / _positions(specs, sizes)

    def affordable(self, specs: list[TensorSpec], sizes: Mapping[str, int]) -> bool:
        """Whether a run at these sizes is short enough to be tried."""
        elements = sum(math.prod(evaluate_dim(d, sizes) for d in spec.shape) for spec in specs)
        products = _positions(specs, sizes) * (self._products or self.weights)
        return elements <= _MOST_ELEMENTS and products <= _MOST_PRODUCTS


def _positions(specs: list[TensorSpec], sizes: Mapping[str, int]) -> int:
    """The elements on the named axes of the input that has most of them."""
    return max(
        math.prod(evaluate_dim(dim, sizes) for dim in spec.shape if isinstance(dim, str))
        for spec in specs
    )


def table_sizes(graph: Graph) -> list[int]:
    """The lengths of constants that positions are looked up in: the largest a dimension may be."""
    found: set[int] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        table = node.inputs[0] if node.op_type in ("Gather", "Slice") and node.inputs else None
        if table is not None and table.const_value is not None and table.shape is not None:
            found.update(size for size in list(table.shape)[:-1] if isinstance(size, int))
    return sorted(size for size in found if 8 <= size <= 16384)
