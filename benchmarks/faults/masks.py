"""Faults in masks, windows and positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from benchmarks.faults.attention import HEADS, LATE, Places, inputs_exchanged, integer_attribute
from benchmarks.faults.fault import (
    Fault,
    Place,
    array_of,
    at,
    fresh,
    nodes,
    read_instead,
    set_array,
)
from omnigraph.graph import Graph
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import input_at

_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual")


def _comparison(becomes: dict[str, str]) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *_COMPARISONS):

            def plant(node: ir.Node = node) -> None:
                node.op_type = becomes[node.op_type]

            yield at(node, plant)

    return places


_STRICT = {
    "Less": "LessOrEqual",
    "LessOrEqual": "Less",
    "Greater": "GreaterOrEqual",
    "GreaterOrEqual": "Greater",
}
_BACKWARD = {
    "Less": "Greater",
    "LessOrEqual": "GreaterOrEqual",
    "Greater": "Less",
    "GreaterOrEqual": "LessOrEqual",
}


def _integer(by: int, least: int, most: int, *op_types: str) -> Places:
    """An integer constant that some ops read, off by some."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            for index, value in enumerate(node.inputs):
                array = array_of(value)
                if array is None or array.dtype.kind != "i" or array.size != 1:
                    continue
                if not least <= abs(int(array.reshape(-1)[0])) <= most:
                    continue
                before = Inserter(node)
                new = before.constant(array + array.dtype.type(by))
                yield at(node, lambda n=node, i=index, v=new: n.replace_input_with(i, v))

    return places


def _other_op(one: str, other: str) -> Places:
    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, one):
            yield at(node, lambda n=node: setattr(n, "op_type", other))

    return places


def _not(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "And", "Or", "Where"):
        yield at(
            node,
            lambda n=node: fresh(n, 0, lambda v: Inserter(n).op("Not", v)),
        )


def _hidden_is(number: float) -> Places:
    """What hides a token is a smaller number."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, "Where"):
            for index in (1, 2):
                array = array_of(input_at(node, index))
                single = array is not None and array.dtype.kind == "f" and array.size == 1
                if array is not None and single and float(array.reshape(-1)[0]) < -1e4:
                    new = Inserter(node).constant(np.full_like(array, number))
                    yield at(node, lambda n=node, i=index, v=new: n.replace_input_with(i, v))

    return places


def _ranges(graph: Graph) -> Iterator[Place]:
    for node in nodes(graph, "Range"):
        for reader, index in list(node.outputs[0].uses())[:1]:

            def plant(reader: ir.Node = reader, index: int = index) -> None:
                before = Inserter(reader)
                fresh(reader, index, lambda v: before.op("Add", v, before.number(1, v)))

            yield at(node, plant, reader)


def _of_sines(graph: Graph) -> Iterator[Place]:
    """The positions that rotary angles are made from."""
    for node in nodes(graph, "Cos", "Sin"):
        angle = node.inputs[0]
        maker = angle.producer() if angle is not None else None
        if maker is not None and maker.op_type == "Mul":

            def plant(maker: ir.Node = maker) -> None:
                before = Inserter(maker)
                number = before.constant(np.float32(1.0))
                index = 0 if array_of(maker.inputs[0]) is None else 1
                fresh(maker, index, lambda v: before.op("Add", v, number))

            yield at(maker, plant)


def _frequencies(graph: Graph) -> Iterator[Place]:
    for place in nodes(graph, "Cos", "Sin"):
        angle = place.inputs[0]
        maker = angle.producer() if angle is not None else None
        for index, value in enumerate(maker.inputs if maker is not None else ()):
            array = array_of(value)
            if maker is not None and array is not None and array.dtype.kind == "f":
                new = Inserter(maker).constant((array * np.float32(1.01)).astype(array.dtype))
                yield at(maker, lambda n=maker, i=index, v=new: n.replace_input_with(i, v))


def _bypassed(*op_types: str) -> Places:
    """A node whose readers read its first input."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, *op_types):
            source, made = node.inputs[0], node.outputs[0]
            if source is None:
                continue

            def plant(source: ir.Value = source, made: ir.Value = made) -> None:
                read_instead(made, source)

            yield at(node, plant, *(reader for reader, _ in made.uses()))

    return places


def _bias_table(change: Callable[[np.ndarray], np.ndarray]) -> Places:
    """A table of biases with a column for each head: a constant [N, H] or [H, …]."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in graph.graph:
            for value in node.inputs:
                array = array_of(value)
                if value is None or array is None or array.dtype.kind != "f" or array.size < HEADS:
                    continue
                heads = HEADS in array.shape and array.ndim >= 1 and array.size <= HEADS * 400
                named = (value.name or "").endswith(("bias", "weight"))
                if heads and (not named or "relative" in (value.name or "")):
                    new = change(np.moveaxis(array, array.shape.index(HEADS), 0).copy())
                    new = np.moveaxis(new, 0, array.shape.index(HEADS))
                    yield at(node, lambda v=value, a=new: set_array(graph, v, a))

    return places


def _first_head_2_percent(array: np.ndarray) -> np.ndarray:
    array[0] *= 1.02
    return array


FAULTS: tuple[Fault, ...] = (
    Fault("< for <= in a mask", _comparison(_STRICT), ("trace", "passes", "lowering")),
    Fault("< for > in a mask", _comparison(_BACKWARD), ("trace", "passes")),
    Fault("window one larger",
          _integer(1, 2, 1000, *_COMPARISONS, "Sub", "Add"), ("trace", *LATE)),
    Fault("window one smaller", _integer(-1, 2, 1000, *_COMPARISONS, "Sub"), ("trace", "passes")),
    Fault("window of the kernel one larger",
          integer_attribute(
              "local_window_size", lambda w: w + 1, "GroupQueryAttention", default=-1),
          ("lowering", "artifact")),
    Fault("and for or in a mask", _other_op("Or", "And"), ("trace", "passes")),
    Fault("or for and in a mask", _other_op("And", "Or"), ("trace", "passes", "artifact")),
    Fault("mask inverted", _not, ("trace", "passes")),
    Fault("hidden tokens at -1", _hidden_is(-1.0), ("trace", "passes", "lowering")),
    Fault("hidden tokens at -10", _hidden_is(-10.0), ("passes", "artifact")),
    Fault("positions one later", _ranges, ("trace", "passes", "lowering")),
    Fault("rotary positions one later", _of_sines, ("trace", "passes")),
    Fault("rotary frequencies 1% off", _frequencies, ("trace", *LATE)),
    Fault("rotation lost", _bypassed("RotaryEmbedding"), LATE),
    Fault("sine and cosine exchanged", inputs_exchanged(1, 2, "RotaryEmbedding"), LATE),
    Fault("rotation interleaved",
          integer_attribute("interleaved", lambda was: 1 - was, "RotaryEmbedding"),
          ("passes", "artifact")),
    Fault("position bias shifted by one",
          _bias_table(lambda a: np.roll(a, 1, axis=-1 if a.shape[-1] > 1 else 0)), LATE),
    Fault("heads of the position bias reversed", _bias_table(lambda a: a[::-1]), LATE),
    Fault("2% on a head's position bias", _bias_table(_first_head_2_percent), LATE),
)  # fmt: skip
