"""The blocks of a model: the layers that repeat, each with what goes in and comes out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.analysis.quantization.linear_layers import LinearLayer

#: The path of a module up to its first number: "encoder.layer.0" of "encoder.layer.0.attention".
_NUMBERED = re.compile(r"^.*?[./]\d+(?=[./]|$)")


@dataclass(frozen=True, eq=False)
class Block:
    """Some linear layers of one module, and the nodes that compute with their results.

    Args:
        path: of the module.
        layers: the linear layers.
        nodes: every node of the module whose floats depend on one of the layers, in order.
        inputs: the values that the nodes read and do not make, without constants. Integers and
            booleans that follow from the layers' shapes are among them.
        outputs: the float values that others read, or that the Graph gives.
    """

    path: str
    layers: tuple[LinearLayer, ...]
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


def blocks_of(graph: Graph, layers: Sequence[LinearLayer]) -> list[Block]:
    """Linear layers in blocks, in the order of the Graph.

    Left out: layers whose weight has another reader, and blocks that others compute a part of.
    """
    grouped: dict[str, list[LinearLayer]] = {}
    for linear in layers:
        if linear.transpose is None and len(linear.weight.uses()) == 1:
            grouped.setdefault(block_path(linear.layer), []).append(linear)
    others = {path: _nodes_of(grouped, path) for path in grouped}
    found = (_block(graph, path, grouped[path], others[path]) for path in grouped)
    return [block for block in found if block is not None]


def _nodes_of(grouped: Mapping[str, Sequence[LinearLayer]], path: str) -> set[ir.Node]:
    """The linear layers of all other blocks."""
    return {linear.node for other in grouped if other != path for linear in grouped[other]}


def block_path(layer: str) -> str:
    """The path of the block that a module is in: its own, where no number is in it."""
    numbered = _NUMBERED.match(layer)
    return numbered[0] if numbered else layer


def _block(
    graph: Graph, path: str, layers: Sequence[LinearLayer], others: set[ir.Node]
) -> Block | None:
    starts = {linear.node for linear in layers}
    made: set[ir.Value] = set()
    behind: list[ir.Node] = []  # in the order of the Graph, the nodes that depend on a layer
    for node in graph.graph:
        # Sizes and masks follow from shapes, whatever the weights are.
        if _gives_floats(node) and (node in starts or not made.isdisjoint(node.inputs)):
            behind.append(node)
            made.update(node.outputs)
    # What lies between two nodes of the module belongs to them, wherever it was written.
    kept: set[ir.Node] = set()
    for node in reversed(behind):
        users = (user for v in node.outputs for user, _ in v.uses())
        if node in starts or _is_in(node, path) or any(user in kept for user in users):
            kept.add(node)
    if not kept.isdisjoint(others):
        return None
    inside = dict.fromkeys(node for node in behind if node in kept)
    own = {value for node in inside for value in node.outputs}
    read = dict.fromkeys(v for node in inside for v in node.inputs if v is not None)
    inputs = tuple(v for v in read if v not in own and not is_weight(v))
    floats = (v for node in inside for v in node.outputs if v.dtype == ir.DataType.FLOAT)
    outputs = tuple(v for v in floats if _leaves(v, inside))
    return Block(path, tuple(layers), tuple(inside), inputs, outputs) if outputs else None


def _is_in(node: ir.Node, path: str) -> bool:
    return block_path(node.metadata_props.get(MODULE_KEY, "")) == path


def _leaves(value: ir.Value, inside: dict[ir.Node, None]) -> bool:
    """Whether others compute floats with a value; those that read its shape do not count."""
    others = (user for user, _ in value.uses() if user not in inside)
    return value.is_graph_output() or any(_gives_floats(user) for user in others)


def _gives_floats(node: ir.Node) -> bool:
    return any(value.dtype == ir.DataType.FLOAT for value in node.outputs)
