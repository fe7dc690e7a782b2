"""A fault: a small wrong change of a Graph, at a place and at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, Graph

#: When a fault is planted: into the Graph as traced, after the passes that fuse, in the pass that
#: rounds, after the target's last pass, or into the files alone.
TIMES = ("trace", "passes", "rounding", "lowering", "artifact")

#: The roles of weights, by the ends of the paths of their modules.
ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("attention.query", "self.query"),
    "key": ("attention.key", "self.key"),
    "value": ("attention.value", "self.value"),
    "joined": ("attn.c_attn",),
    "projection": ("attention.output", "attention.output.dense", "attn.c_proj"),
    "up": ("feed_forward.up", "intermediate.dense", "mlp.c_fc"),
    "down": ("feed_forward.down", "mlp.c_proj"),
    "table": ("token_embedding", "wte", "word_embeddings", "lm_head"),
    "norm": ("norm", "LayerNorm", "ln_1", "ln_2", "ln_f"),
    "positions": ("position_embedding", "wpe", "position_embeddings"),
}


@dataclass(frozen=True)
class Place:
    """Where a fault can be planted.

    Args:
        name: of the weight, of the node, or of an output.
        modules: paths of the modules in which the numbers may part first.
        plant: changes the Graph.
    """

    name: str
    modules: tuple[str, ...]
    plant: Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """A wrong change of a Graph.

    Args:
        name: for a person, such as "2% on a row of the query weight".
        places: where it can be planted in a Graph.
        times: when it can be planted.
    """

    name: str
    places: Callable[[Graph], Iterable[Place]]
    times: tuple[str, ...] = ("passes", "artifact")

    def place(self, graph: Graph) -> Place | None:
        """The place for this fault in a Graph: always the same one; None where there is none."""
        places = list(self.places(graph))
        return places[crc32(self.name.encode()) % len(places)] if places else None


def module_of(node: ir.Node) -> str:
    """The path of the module that a node came from."""
    return node.metadata_props.get(MODULE_KEY, "")


def nodes(graph: Graph, *op_types: str) -> Iterator[ir.Node]:
    """The nodes of these ops, in order."""
    for node in graph.graph:
        if node.op_type in op_types:
            yield node


def at(node: ir.Node, plant: Callable[[], object], *more: ir.Node) -> Place:
    """A place at a node."""
    modules = (node, *more)
    return Place(node.name or node.op_type, tuple(dict.fromkeys(map(module_of, modules))), plant)


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or a constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def set_array(graph: Graph, value: ir.Value, array: np.ndarray) -> None:
    """Give an initializer, or the result of a Constant, another array of its own type."""
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    new = ir.tensor(
        np.ascontiguousarray(array.astype(tensor.dtype.numpy())),
        dtype=tensor.dtype,
        name=value.name,
    )
    producer = value.producer()
    if producer is not None:
        producer.attributes["value"] = ir.AttrTensor("value", new)
    value.const_value = new
    value.shape = ir.Shape(array.shape)


def fresh(node: ir.Node, index: int, make: Callable[[ir.Value], ir.Value]) -> None:
    """Let one input of a node be what ``make`` gives for it."""
    value = node.inputs[index]
    assert value is not None
    made = make(value)
    made.type, made.shape = made.type or value.type, made.shape or value.shape
    node.replace_input_with(index, made)


def read_instead(old: ir.Value, new: ir.Value) -> None:
    """Let all nodes that read a value read another; an output of the Graph stays."""
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, new)


def readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a value, through casts and dequantization too."""
    found: list[ir.Node] = []
    for node, _ in value.uses():
        found.append(node)
        if node.op_type in ("Cast", "DequantizeLinear", "Transpose", "Gather", "Identity"):
            found += readers(node.outputs[0])
    return found


def has_role(name: str, role: str) -> bool:
    """Whether the name of a weight is that of a role: ``….query.weight_T_int8``."""
    path = name.rsplit(".", 1)[0]
    if path == "output":  # the embedding of an OmniNet shares its weight with the logits
        return role == "table"
    return any(path == end or path.endswith(("." + end, "_" + end)) for end in ROLES[role])
