"""The linear layers of a Graph, and the tables of its embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.passes.analysis.quantization.float_precision import is_weight
from omnigraph.passes.matching import input_at, made_by, nodes_of, standard, through

#: Ops that may stand between the caller's tokens and a lookup.
_INDEX_MOVES = ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Identity", "Flatten")


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """One MatMul or Gemm of an activation [..., K] with a constant weight of two axes.

    Args:
        layer: the path of its module, by which precisions are chosen.
        node: the MatMul or Gemm; its input 0 is the activation.
        activation: float32 [..., K].
        weight: the initializer: [K, N] or [N, K].
        channel_axis: the axis of N, the output channels, in the initializer.
        transpose: the Transpose between the initializer and the node, if any: of a table that
            embeddings and logits share, for example.
    """

    layer: str
    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    channel_axis: int
    transpose: ir.Node | None = None

    @property
    def contraction(self) -> int:
        """K, the terms of each sum."""
        return self._size(1 - self.channel_axis)

    @property
    def channels(self) -> int:
        """N, the output channels."""
        return self._size(self.channel_axis)

    @property
    def matrix(self) -> np.ndarray:
        """The weight, float32 [K, N]."""
        assert self.weight.const_value is not None
        weight = self.weight.const_value.numpy()
        return weight.T if self.channel_axis == 0 else weight

    def _size(self, axis: int) -> int:
        assert self.weight.shape is not None
        size = self.weight.shape[axis]
        assert isinstance(size, int)
        return size


@dataclass(frozen=True, eq=False)
class Table:
    """The constant table [V, C] of an embedding: the caller's integers look up its rows.

    Args:
        layer: the module of the first Gather.
        weight: the initializer.
        gathers: every Gather of its rows.
    """

    layer: str
    weight: ir.Value
    gathers: tuple[ir.Node, ...]


def linear_layers(graph: Graph) -> list[LinearLayer]:
    """Every float32 linear layer with a constant weight, in the order of the Graph."""
    found = (linear_layer_of(node) for node in nodes_of(graph, "MatMul", "Gemm"))
    return [linear for linear in found if linear is not None]


def linear_layer_of(node: ir.Node) -> LinearLayer | None:
    """A node as a linear layer, or None."""
    if not standard(node, "MatMul", "Gemm"):
        return None
    parts = _parts(node)
    return None if parts is None else LinearLayer(layer_of(node), node, *parts)


def layer_of(node: ir.Node) -> str:
    """The path of a node's module; the node's own name where it has none."""
    return node.metadata_props.get(MODULE_KEY) or node.name or node.op_type


def _parts(node: ir.Node) -> tuple[ir.Value, ir.Value, int, ir.Node | None] | None:
    """Activation, weight, axis of the output channels, and the Transpose between; or None."""
    activation, factor = input_at(node, 0), input_at(node, 1)
    if activation is None or factor is None or activation.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Gemm" and not _is_plain(node):
        return None
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    transpose = made_by(factor, "Transpose")
    if transpose is not None and tuple(transpose.attributes.get_ints("perm", (1, 0))) == (1, 0):
        factor, axis = transpose.inputs[0], 1 - axis
    else:
        transpose = None
    if factor is None or not is_weight(factor) or factor.dtype != ir.DataType.FLOAT:
        return None
    if factor.shape is None or len(factor.shape) != 2 or is_weight(activation):
        return None
    return activation, factor, axis, transpose


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm is x W + b, with W possibly transposed."""
    get = node.attributes.get_float
    return get("alpha", 1.0) == 1.0 == get("beta", 1.0) and not node.attributes.get_int("transA", 0)


def tables(graph: Graph) -> list[Table]:
    """Every float32 table of two axes whose rows the caller's integers look up.

    Tables that computed positions look up are not among them.
    """
    gathers: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes_of(graph, "Gather"):
        if (table := table_of(node)) is not None:
            gathers.setdefault(table, []).append(node)
    return [Table(layer_of(nodes[0]), table, tuple(nodes)) for table, nodes in gathers.items()]


def table_of(node: ir.Node) -> ir.Value | None:
    """The table whose rows a node looks up by the caller's integers, or None."""
    if not standard(node, "Gather"):
        return None
    table = node.inputs[0]
    if table is None or not is_weight(table) or table.dtype != ir.DataType.FLOAT:
        return None
    if table.shape is None or len(table.shape) != 2 or node.attributes.get_int("axis", 0) != 0:
        return None
    return table if _is_given(node.inputs[1]) else None


def _is_given(indices: ir.Value | None) -> bool:
    """Whether indices are an input of the Graph, however reshaped."""
    source = through(indices, *_INDEX_MOVES)
    return source is not None and source.is_graph_input()


def bias_of(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The node that adds the constant bias [N] of a linear layer, and which input the bias is.

    The node is the Gemm itself, or an Add that alone reads a MatMul; None where there is no bias.
    """
    if node.op_type == "Gemm":
        bias = input_at(node, 2)
        return (node, 2) if bias is not None and is_weight(bias) else None
    result = node.outputs[0]
    users = list(result.uses())
    if len(users) != 1 or result.is_graph_output() or not standard(users[0].node, "Add"):
        return None
    place = 1 - users[0].idx
    bias = users[0].node.inputs[place]
    if bias is None or not is_weight(bias) or bias.shape is None or len(bias.shape) != 1:
        return None
    return users[0].node, place


def is_chosen(layer: str, patterns: tuple[str, ...]) -> bool:
    """Whether a layer matches one of these shell patterns, such as ``decoder.*``."""
    return any(fnmatchcase(layer, pattern) for pattern in patterns)


def by_activation(found: list[LinearLayer]) -> Iterator[tuple[ir.Value, list[LinearLayer]]]:
    """Linear layers grouped by activation, in the order of the first of each group."""
    groups: dict[ir.Value, list[LinearLayer]] = {}
    for linear in found:
        groups.setdefault(linear.activation, []).append(linear)
    yield from groups.items()
