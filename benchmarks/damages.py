"""Damages to artifacts and models, each made by its number: the same number, the same damage."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import onnx

#: Values that are put in place of others in JSON.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 10**30, 0.5, -0.5, 1e9, 1e-9, 1e308, "", "x", "1",
    "batch", "past + sequence", "a + ", "../x", "manifest.json", "\ud800", "\0", "float64", "int32",
    [], [None], [[]], ["x"], [1, 2, 3], {}, {"x": None}, {"": {}},
)  # fmt: skip


def generator(kind: str, number: int) -> random.Random:
    """The random numbers of one damage."""
    return random.Random(f"{kind}/{number}")


# -- bytes -----------------------------------------------------------------------------------------


def damaged_bytes(data: bytes, draw: random.Random) -> bytes:
    """The data with one to three damages, of which each changes something."""
    changed = data
    while changed == data:
        for _ in range(draw.randint(1, 3)):
            changed = draw.choice(_BYTES)(changed, draw)
    return changed


def _flip(data: bytes, draw: random.Random) -> bytes:
    array = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 16))):
        if array:
            array[draw.randrange(len(array))] ^= 1 << draw.randrange(8)
    return bytes(array)


def _cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randint(0, len(data))]


def _without(data: bytes, draw: random.Random) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + data[end:]


def _zeros(data: bytes, draw: random.Random) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + bytes(end - start) + data[end:]


def _twice(data: bytes, draw: random.Random) -> bytes:
    start, end = _span(data, draw)
    return data[:end] + data[start:end] + data[end:]


def _exchanged(data: bytes, draw: random.Random) -> bytes:
    start, end = _span(data, draw)
    middle = (start + end) // 2
    return data[:start] + data[middle:end] + data[start:middle] + data[end:]


def _inserted(data: bytes, draw: random.Random) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.randbytes(draw.choice((1, 4, 64))) + data[at:]


def _digit(data: bytes, draw: random.Random) -> bytes:
    """Another number in text, such as a shape or an offset of XML."""
    digits = [at for at, byte in enumerate(data[:100_000]) if 48 <= byte < 58]
    if not digits:
        return _flip(data, draw)
    at = draw.choice(digits)
    text = draw.choice((b"0", b"1", b"9", b"-1", b"99999999", b"4294967297", b"", b"x"))
    return data[:at] + text + data[at + 1 :]


def _span(data: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randint(0, len(data))
    return start, min(len(data), start + draw.choice((1, 8, 100, 5000)))


_BYTES = (_flip, _flip, _cut, _without, _zeros, _twice, _exchanged, _inserted, _digit)


# -- JSON ------------------------------------------------------------------------------------------


def damaged_json(fields: Any, draw: random.Random) -> Any:
    """A copy of a manifest's fields with one to three changes."""
    changed = copy.deepcopy(fields)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if places := list(_places(changed)):
            holder, key = draw.choice(places)
            draw.choice(_ENTRIES)(holder, key, draw, places)
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each entry of each object and each list: what holds it, and its key."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _deleted(holder: Any, key: Any, draw: random.Random, places: Any) -> None:
    del holder[key]


def _renamed(holder: Any, key: Any, draw: random.Random, places: Any) -> None:
    if isinstance(holder, dict):
        holder[draw.choice((f"{key}_", key.upper(), "", "x", key[:-1]))] = holder.pop(key)
    else:
        holder.insert(draw.randint(0, len(holder)), copy.deepcopy(holder[key]))


def _replaced(holder: Any, key: Any, draw: random.Random, places: Any) -> None:
    holder[key] = copy.deepcopy(draw.choice(_VALUES))


def _near(holder: Any, key: Any, draw: random.Random, places: Any) -> None:
    """A value of the same type, near the old one or from elsewhere."""
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = not value
    elif isinstance(value, int):
        holder[key] = value + draw.choice((-1, 1, 2, 1000))
    elif isinstance(value, float):
        holder[key] = value * draw.choice((-1, 0, 2, 1e6))
    else:
        alike = [h[k] for h, k in places if type(h[k]) is type(value)]
        holder[key] = copy.deepcopy(draw.choice(alike))


_ENTRIES: tuple[Callable[[Any, Any, random.Random, Any], None], ...] = (
    _deleted,
    _renamed,
    _replaced,
    _near,
)


# -- ONNX models -----------------------------------------------------------------------------------


def damaged_model(model: onnx.ModelProto, draw: random.Random) -> bytes:
    """The bytes of a model with one to three changes of its graph, or of its bytes."""
    if draw.random() < 0.3:
        return damaged_bytes(model.SerializeToString(), draw)
    changed = copy.deepcopy(model)
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(_NODES)(changed.graph, draw)
    return changed.SerializeToString()


def _other_op(graph: onnx.GraphProto, draw: random.Random) -> None:
    ops = "Add Mul MatMul Softmax Relu Reshape Gather Transpose Loop If NoSuchOp Shape Concat"
    _node(graph, draw).op_type = draw.choice(ops.split())


def _other_input(graph: onnx.GraphProto, draw: random.Random) -> None:
    node = _node(graph, draw)
    names = [name for n in graph.node for name in (*n.input, *n.output)] + ["", "nothing"]
    if node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(names)


def _other_output(graph: onnx.GraphProto, draw: random.Random) -> None:
    node = _node(graph, draw)
    node.output[0] = draw.choice(["", "nothing", _node(graph, draw).output[0]])


def _no_node(graph: onnx.GraphProto, draw: random.Random) -> None:
    if len(graph.node) > 1:
        del graph.node[draw.randrange(len(graph.node))]


def _other_attribute(graph: onnx.GraphProto, draw: random.Random) -> None:
    owners = [node for node in graph.node if node.attribute]
    if owners:
        attribute = draw.choice(draw.choice(owners).attribute)
        attribute.i = draw.choice((-(2**63), -7, -1, 0, 1, 9, 2**40))
        attribute.name = draw.choice((attribute.name, attribute.name, "axis", "nothing"))


def _other_weight(graph: onnx.GraphProto, draw: random.Random) -> None:
    tensor = draw.choice(graph.initializer)
    change = draw.randrange(4)
    if change == 0:
        tensor.data_type = draw.choice((0, 1, 7, 9, 10, 11, 16, 99))
    elif change == 1 and tensor.dims:
        tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice((-1, 0, 1, 7, 2**40))
    elif change == 2:
        tensor.raw_data = damaged_bytes(tensor.raw_data, draw)
    else:
        tensor.name = draw.choice(("", "nothing", draw.choice(graph.initializer).name))


def _other_shape(graph: onnx.GraphProto, draw: random.Random) -> None:
    value = draw.choice([*graph.input, *graph.output])
    kind = value.type.tensor_type
    change = draw.randrange(4)
    if change == 0:
        kind.elem_type = draw.choice((0, 1, 7, 8, 9, 10, 16, 99))
    elif change == 1 and kind.shape.dim:
        draw.choice(kind.shape.dim).dim_value = draw.choice((-5, 0, 1, 3, 2**40))
    elif change == 2 and kind.shape.dim:
        draw.choice(kind.shape.dim).dim_param = draw.choice(("", "n", "seq", "a b", "1"))
    else:
        value.name = draw.choice(("", "nothing", value.name))


def _node(graph: onnx.GraphProto, draw: random.Random) -> onnx.NodeProto:
    return draw.choice(graph.node)


_NODES: tuple[Callable[[onnx.GraphProto, random.Random], None], ...] = (
    _other_op,
    _other_input,
    _other_output,
    _no_node,
    _other_attribute,
    _other_weight,
    _other_shape,
)
