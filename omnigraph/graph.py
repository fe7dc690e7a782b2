"""The intermediate graph, and the metadata of its nodes and dimensions.

Every Graph is an ``onnx_ir.Model`` that is valid ONNX at ``OPSET``. A node records the module and
the source line that it came from; a Graph records which sizes each named dimension may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

#: The intermediate graph is an ``onnx_ir.Model``, always a valid ONNX model at ``OPSET``.
Graph = ir.Model

#: The one opset of every Graph. 24 has Attention, RotaryEmbedding, RMSNormalization and
#: TensorScatter, and is the newest that all vendors' parsers read.
OPSET = 24

#: Node metadata: the module of the model that a node came from, and its source line.
MODULE_KEY, SOURCE_KEY = "omnigraph.module", "omnigraph.source"

#: Graph metadata, the prefix of a dimension's name: the sizes that it may have.
RANGE_KEY = "omnigraph.range."

#: In memory only: the role of each input and output, by name.
_ROLES_KEY = "omnigraph.roles"


def count_ops(graph: Graph) -> Counter[str]:
    """How many nodes of each op a Graph has, subgraphs included."""
    return Counter(
        node.op_type if node.domain == "" else f"{node.domain}::{node.op_type}"
        for node in ir.traversal.RecursiveGraphIterator(graph.graph)
    )


def inherit_provenance(graph: Graph) -> None:
    """Give a node without a module the module of a reader, or else of an input."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph.graph))
    for order in (reversed(nodes), nodes):
        for node in order:
            if MODULE_KEY not in node.metadata_props:
                _inherit(node)


def _inherit(node: ir.Node) -> None:
    users = (user for output in node.outputs for user, _ in output.uses())
    producers = (value.producer() for value in node.inputs if value is not None)
    for other in (*users, *producers):
        if other is not None and MODULE_KEY in other.metadata_props:
            node.metadata_props[MODULE_KEY] = other.metadata_props[MODULE_KEY]
            if SOURCE_KEY in other.metadata_props:
                node.metadata_props[SOURCE_KEY] = other.metadata_props[SOURCE_KEY]
            return


def declare_ranges(graph: Graph, ranges: Mapping[str, tuple[int, int | None]]) -> None:
    """Record which sizes each named dimension may have, both ends included; None is no bound."""
    for dim, (least, most) in ranges.items():
        graph.metadata_props[RANGE_KEY + dim] = f"{least}:{'' if most is None else most}"


def range_of(graph: Graph, dim: str) -> tuple[int, int | None]:
    """The sizes that a named dimension may have: (0, None) where nothing is declared."""
    least, _, most = graph.metadata_props.get(RANGE_KEY + dim, "0:").partition(":")
    return int(least), int(most) if most else None


def declare_roles(graph: Graph, roles: Mapping[str, str]) -> None:
    """Record the roles of inputs and outputs by name, in memory only."""
    graph.graph.meta[_ROLES_KEY] = dict(roles)


def role_of(graph: Graph, tensor: str | None) -> str:
    """The role of an input or output, or "" where none is known."""
    return graph.graph.meta.get(_ROLES_KEY, {}).get(tensor, "")


def describe(node: ir.Node) -> str:
    """A node for a person: op, name, and the module and source line it came from."""
    text = f"{node.op_type} {node.name!r}"
    if module := node.metadata_props.get(MODULE_KEY):
        text += f" of module {module!r}"
    if source := node.metadata_props.get(SOURCE_KEY):
        text += f" ({source})"
    return text


def places(graph: Graph) -> dict[str, str]:
    """Every node for a person, by its name and by the names of its outputs."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph.graph))
    by_output = {v.name: describe(node) for node in nodes for v in node.outputs if v.name}
    return {**by_output, **{node.name: describe(node) for node in nodes if node.name}}
