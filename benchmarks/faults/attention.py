"""Faults in attentions: scales, heads, inputs, caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from benchmarks.faults.fault import Fault, Place, at, fresh, nodes
from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at

Places = Callable[[Graph], Iterator[Place]]
LATE = ("passes", "lowering", "artifact")
_ATTENTIONS = ("Attention", "GroupQueryAttention")
HEADS = 6


# Attributes and inputs of an attention ------------------------------------------------------------


def _head_size(node: ir.Node) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    size = shape[-1] if shape is not None else None
    assert isinstance(size, int)
    return size if len(shape or ()) == 4 else size // HEADS


def _scale_times(factor: float) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *_ATTENTIONS):

            def plant(node: ir.Node = node) -> None:
                scale = node.attributes.get_float("scale", 0.0) or _head_size(node) ** -0.5
                node.attributes["scale"] = ir.AttrFloat32("scale", scale * factor)

            yield at(node, plant)

    return places


def integer_attribute(
    name: str, change: Callable[[int], int], *op_types: str, default: int = 0
) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            was = node.attributes.get_int(name, default)

            def plant(node: ir.Node = node, was: int = was) -> None:
                node.attributes[name] = ir.AttrInt64(name, change(was))

            yield at(node, plant)

    return places


def _softcap(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, *_ATTENTIONS):
        yield at(
            node,
            lambda n=node: n.attributes.add(ir.AttrFloat32("softcap", 20.0)),
        )


def inputs_exchanged(one: int, other: int, *op_types: str) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            if (a := input_at(node, one)) is None or (b := input_at(node, other)) is None:
                continue

            def plant(node: ir.Node = node, a: ir.Value = a, b: ir.Value = b) -> None:
                node.replace_input_with(one, b)
                node.replace_input_with(other, a)

            yield at(node, plant)

    return places


def _mask_lost(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Attention"):
        if input_at(node, 3) is not None:
            yield at(node, lambda n=node: n.replace_input_with(3, None))


def _attention_input(index: int, make: Callable[[Inserter, ir.Value], ir.Value]) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *_ATTENTIONS):
            if input_at(node, index) is not None:
                before = Inserter(node)
                yield at(node, lambda n=node, b=before: fresh(n, index, lambda v: make(b, v)))

    return places


def rolled(before: Inserter, value: ir.Value, axis: int) -> ir.Value:
    """A value whose elements are one place later along an axis; the last is the first."""
    one = before.op(
        "Slice", value, before.integers(-1), before.integers(1 << 30), before.integers(axis)
    )
    rest = before.op("Slice", value, before.integers(0), before.integers(-1), before.integers(axis))
    return before.op("Concat", one, rest, axis=axis)


def reordered(before: Inserter, value: ir.Value, order: tuple[int, ...], axis: int) -> ir.Value:
    """A value whose elements along an axis stand in another order."""
    return before.op("Gather", value, before.integers(*order), axis=axis)


def _is_heads(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and value.shape[1] == HEADS


def _heads_exchanged(before: Inserter, value: ir.Value) -> ir.Value:
    if not _is_heads(value):
        return rolled(before, value, 2)
    return reordered(before, value, (1, 0, 2, 3, 4, 5), 1)


def _head_is_another(before: Inserter, value: ir.Value) -> ir.Value:
    if not _is_heads(value):
        return rolled(before, value, 2)
    return reordered(before, value, (0, 1, 1, 3, 4, 5), 1)


def _result(make: Callable[[Inserter, ir.Value], ir.Value], *op_types: str) -> Places:
    """What the first reader of a node reads is another value."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            uses = list(node.outputs[0].uses())
            if not uses:
                continue
            reader, index = uses[0]

            def plant(reader: ir.Node = reader, index: int = index) -> None:
                fresh(reader, index, lambda value: make(Inserter(reader), value))

            yield at(node, plant, reader)

    return places


def _head_lost(before: Inserter, value: ir.Value) -> ir.Value:
    if not _is_heads(value):
        return before.op("Mul", value, before.number(0.5, value))
    assert value.dtype is not None
    kept = np.ones((1, HEADS, 1, 1), value.dtype.numpy())
    kept[0, 4] = 0
    return before.op("Mul", value, before.constant(kept))


def _head_2_percent(before: Inserter, value: ir.Value) -> ir.Value:
    if not _is_heads(value):
        return before.op("Mul", value, before.number(1.02, value))
    assert value.dtype is not None
    kept = np.ones((1, HEADS, 1, 1), value.dtype.numpy())
    kept[0, 2] = 1.02
    return before.op("Mul", value, before.constant(kept))


# Caches -------------------------------------------------------------------------------------------


def _outputs_exchanged(first: str, second: str) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        outputs = list(graph.graph.outputs)
        named = {value.name: index for index, value in enumerate(outputs)}
        if first not in named or second not in named:
            return
        one, other = outputs[named[first]], outputs[named[second]]
        makers = [v.producer() for v in (one, other)]

        def plant() -> None:
            one.name, other.name = f"{second}_", f"{first}_"
            one.name, other.name = second, first
            graph.graph.outputs[named[first]], graph.graph.outputs[named[second]] = other, one

        modules = tuple(m.metadata_props.get("omnigraph.module", "") for m in makers if m)
        yield Place(first, modules, plant)

    return places


def _caches(change: Callable[[ir.Node], None]) -> Places:
    """A Concat of a past and what is new."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, "Concat"):
            first = node.inputs[0]
            if first is not None and first.is_graph_input() and "past" in (first.name or ""):
                yield at(node, lambda n=node: change(n))

    return places


def _past_rolled(node: ir.Node) -> None:
    fresh(node, 0, lambda value: rolled(Inserter(node), value, 2))


def _past_last(node: ir.Node) -> None:
    first, second = node.inputs[0], node.inputs[1]
    node.replace_input_with(0, second)
    node.replace_input_with(1, first)


def _past_of_another(graph: Graph) -> Iterator[Place]:
    caches = [
        n for n in nodes(graph, "Concat")
        if n.inputs[0] is not None and "past" in (n.inputs[0].name or "")
    ]  # fmt: skip
    for one, other in pairwise(caches):

        def plant(one: ir.Node = one, other: ir.Node = other) -> None:
            first, second = one.inputs[0], other.inputs[0]
            one.replace_input_with(0, second)
            other.replace_input_with(0, first)

        yield at(one, plant, other)


FAULTS: tuple[Fault, ...] = (
    Fault("scale of attention 2% off", _scale_times(1.02), LATE),
    Fault("scale of attention 0.2% off", _scale_times(1.002), LATE),
    Fault("scale of attention is 1/D", _scale_times(0.25), LATE),
    Fault("softcap added", _softcap, LATE),
    Fault("causal flag flipped",
          integer_attribute("is_causal", lambda was: 1 - was, "Attention"), LATE),
    Fault("key and value exchanged", inputs_exchanged(1, 2, *_ATTENTIONS), LATE),
    Fault("query and key exchanged", inputs_exchanged(0, 1, "Attention"), ("passes",)),
    Fault("mask lost", _mask_lost, LATE),
    Fault("mask shifted by one key", _attention_input(3, lambda b, v: rolled(b, v, 3)), LATE),
    Fault("mask shifted by one query", _attention_input(3, lambda b, v: rolled(b, v, 2)), LATE),
    Fault("heads of query exchanged", _attention_input(0, _heads_exchanged), LATE),
    Fault("heads of value exchanged", _attention_input(2, _heads_exchanged), LATE),
    Fault("key of a head is another's", _attention_input(1, _head_is_another), LATE),
    Fault("keys shifted by one", _attention_input(1, lambda b, v: rolled(b, v, 2)), ("passes",)),
    Fault("a head lost", _result(_head_lost, *_ATTENTIONS), LATE),
    Fault("2% on a head", _result(_head_2_percent, *_ATTENTIONS), LATE),
    Fault("heads of the result exchanged", _result(_heads_exchanged, *_ATTENTIONS), ("passes",)),
    Fault("present key and value exchanged",
          _outputs_exchanged("present_key_values.0.key", "present_key_values.0.value"), LATE),
    Fault("present keys of layers exchanged",
          _outputs_exchanged("present_key_values.0.key", "present_key_values.1.key"),
          ("trace", "passes")),
    Fault("past shifted by one", _caches(_past_rolled), LATE),
    Fault("past behind what is new", _caches(_past_last), ("trace", "passes")),
    Fault("past of another layer or of values", _past_of_another, ("trace", "passes", "artifact")),
)  # fmt: skip
