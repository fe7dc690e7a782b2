"""A Graph as text that a person reads and ``diff`` compares: one line per node, in order."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, Graph

#: Constants of at most this many elements are shown instead of their names.
_SHOWN = 8


def graph_text(graph: Graph) -> str:
    """The whole Graph: inputs, then each node with its type, shape and module, then outputs.

    ``y: float[batch, 64] = Add(x, bias)    # encoder.0``. Constants of a few elements show
    these, weights their name, dtype and shape. Nodes have the names of their outputs, so that the
    text of two stages of one Graph can be compared line by line.
    """
    lines = [f"input   {_typed(value)}" for value in graph.graph.inputs]
    lines += _lines(graph.graph, "")
    lines += [f"output  {_typed(value)}" for value in graph.graph.outputs]
    return "\n".join(lines) + "\n"


def graph_diff(before: str, after: str, names: tuple[str, str]) -> str:
    """A unified diff of two texts; empty where they are equal."""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), *names, n=2
    )
    return "".join(lines)


def _lines(graph: ir.Graph | ir.Function, indent: str) -> Iterator[str]:
    for node in graph:
        if node.op_type == "Constant" and _shown(node.outputs[0]) is not None:
            continue  # shown where it is read
        outputs = ", ".join(_typed(value) for value in node.outputs if value.name)
        inputs = ", ".join("" if value is None else _read(value) for value in node.inputs)
        domain = f"{node.domain}::" if node.domain else ""
        shown = [
            f"{name}={_attribute(attribute)}"
            for name, attribute in sorted(node.attributes.items())
            if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        ]
        line = f"{indent}{outputs} = {domain}{node.op_type}({inputs})"
        line += f" {{{', '.join(shown)}}}" if shown else ""
        module = node.metadata_props.get(MODULE_KEY)
        yield f"{line}    # {module}" if module else line
        for name, attribute in sorted(node.attributes.items()):
            if attribute.type == ir.AttributeType.GRAPH:
                yield f"{indent}  {name}:"
                yield from _lines(attribute.as_graph(), indent + "    ")


def _typed(value: ir.Value) -> str:
    dtype = value.dtype.name.lower() if value.dtype is not None else "?"
    return f"{value.name}: {dtype}{_shape(value.shape)}"


def _shape(shape: ir.Shape | None) -> str:
    if shape is None:
        return "[…]"
    return "[" + ", ".join(str(d) if isinstance(d, int) else d.value or "?" for d in shape) + "]"


def _read(value: ir.Value) -> str:
    constant = _shown(value)
    if constant is not None:
        return constant
    return _typed(value) if value.is_initializer() else value.name or "?"


def _shown(value: ir.Value) -> str | None:
    """The elements of a small constant, or None."""
    if value.is_graph_output():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > _SHOWN:
        return None
    return _numbers(tensor.numpy())


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        if tensor.size <= _SHOWN:
            return _numbers(tensor.numpy())
        return f"{tensor.dtype.name.lower()}{list(tensor.shape.numpy())}"
    value = attribute.value
    if isinstance(value, float):
        return f"{value:.9g}"
    return str(list(value) if isinstance(value, tuple) else value)


def _numbers(array: np.ndarray) -> str:
    if array.ndim == 0:
        return f"{array.item():.9g}" if array.dtype.kind == "f" else str(array.item())
    return "[" + ", ".join(_numbers(part) for part in array) + "]"
