"""Faults in rounding: scales, zero points, codes, blocks, and types of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx_ir as ir

from benchmarks.faults.fault import (
    Fault,
    Place,
    array_of,
    at,
    module_of,
    nodes,
    read_instead,
    readers,
    set_array,
)
from omnigraph.graph import Graph

Places = Callable[[Graph], Iterator[Place]]
Change = Callable[[np.ndarray], np.ndarray]
_ALL = ("rounding", "lowering", "artifact")
_LATE = ("rounding", "artifact")


def _initializers(
    graph: Graph, wanted: Callable[[str, ir.Value], bool], change: Change
) -> Iterator[Place]:
    for name, value in graph.graph.initializers.items():
        if value.const_value is None or not value.uses() or not wanted(name, value):
            continue

        def plant(value: ir.Value = value) -> None:
            array = array_of(value)
            assert array is not None
            set_array(graph, value, change(array.astype(_wide(array)).copy()))

        modules = tuple(dict.fromkeys(module_of(node) for node in readers(value)))
        yield Place(name, modules, plant)


def _wide(array: np.ndarray) -> type:
    integer = array.dtype.kind in "iu" or "int" in array.dtype.name
    return np.int32 if integer else np.float32


def _is_weight(graph: Graph, name: str) -> bool:
    return name.removesuffix("_scale").removesuffix("_zero_point") in graph.graph.initializers


def _weight_scales(change: Change) -> Places:
    return lambda graph: _initializers(
        graph, lambda name, v: name.endswith("_scale") and _is_weight(graph, name), change
    )


def _weight_zeros(change: Change) -> Places:
    return lambda graph: _initializers(
        graph,
        lambda name, v: name.endswith("_zero_point") and _is_weight(graph, name) and _large(v),
        change,
    )


def _large(value: ir.Value) -> bool:
    return value.shape is not None and int(np.prod(value.shape.numpy())) > 1


def _codes(change: Change) -> Places:
    def wanted(name: str, value: ir.Value) -> bool:
        small = value.dtype is not None and value.dtype.bitwidth <= 8
        return small and value.shape is not None and len(value.shape) == 2 and "zero" not in name

    def places(graph: Graph) -> Iterator[Place]:
        for place in _initializers(graph, wanted, lambda a: a):
            value = graph.graph.initializers[place.name]
            assert value.dtype is not None
            dtype = value.dtype
            if not dtype.is_integer():
                continue

            def plant(value: ir.Value = value, dtype: ir.DataType = dtype) -> None:
                array = array_of(value)
                assert array is not None
                new = change(array.astype(np.int32).copy())
                set_array(graph, value, np.clip(new, dtype.min, dtype.max))

            yield Place(place.name, place.modules, plant)

    return places


def _activations(index: int, change: Change) -> Places:
    """The scale (1) or the zero point (2) of a quantized activation."""

    def places(graph: Graph) -> Iterator[Place]:
        for node in nodes(graph, "QuantizeLinear"):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = array_of(value)
            if value is None or array is None or array.size != 1:
                continue
            if array_of(node.inputs[0]) is not None:
                continue

            def plant(value: ir.Value = value) -> None:
                array = array_of(value)
                assert array is not None
                new = change(array.astype(_wide(array)))
                if _wide(array) is np.int32:
                    info = ml_dtypes.iinfo(array.dtype)
                    new = np.clip(new, info.min, info.max)
                set_array(graph, value, new)

            # Several activations may share a zero point.
            sharing = [user for user, _ in value.uses()]
            read = [reader for user in sharing for reader, _ in user.outputs[0].uses()]
            yield at(node, plant, *sharing, *read)

    return places


def _scales_exchanged(graph: Graph) -> Iterator[Place]:
    found = list(nodes(graph, "QuantizeLinear"))
    for one, other in pairwise(found):
        if array_of(one.inputs[1]) is None or array_of(other.inputs[1]) is None:
            continue

        def plant(one: ir.Node = one, other: ir.Node = other) -> None:
            a, b = one.inputs[1], other.inputs[1]
            for node, old, new in ((one, a, b), (other, b, a)):
                node.replace_input_with(1, new)
                for reader, _ in node.outputs[0].uses():
                    for index, value in enumerate(reader.inputs):
                        if value is old:
                            reader.replace_input_with(index, new)

        yield at(one, plant, other, *(r for n in (one, other) for r, _ in n.outputs[0].uses()))


def _dequantized_with_another(graph: Graph) -> Iterator[Place]:
    """An activation dequantized with a scale that is not the one that it was quantized with."""
    for node in nodes(graph, "DequantizeLinear"):
        value = node.inputs[0]
        if value is None or array_of(value) is not None or node.inputs[1] is None:
            continue
        scale = array_of(node.inputs[1])
        if scale is None or scale.size != 1:
            continue

        def plant(node: ir.Node = node, scale: np.ndarray = scale) -> None:
            constant = ir.node("Constant", [], {"value": ir.tensor(scale * scale.dtype.type(1.02))})
            constant.metadata_props.update(node.metadata_props)
            made = constant.outputs[0]
            made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(scale.shape)
            assert node.inputs[1] is not None
            made.type = node.inputs[1].type
            node.prepend(constant)
            node.replace_input_with(1, made)

        yield at(node, plant)


def _activation_left_out(graph: Graph) -> Iterator[Place]:
    """An activation that is not quantized, though the precision says so: it has less error."""
    for node in nodes(graph, "DequantizeLinear"):
        maker = node.inputs[0].producer() if node.inputs[0] is not None else None
        if maker is None or maker.op_type != "QuantizeLinear":
            continue
        source = maker.inputs[0]
        if source is not None and source.dtype == node.outputs[0].dtype:
            made = node.outputs[0]
            yield at(
                node,
                lambda m=made, s=source: read_instead(m, s),
                *(reader for reader, _ in made.uses()),
            )


def _first_channel(factor: float) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        array[..., 3] *= factor
        return array

    return change


def _halves(change: Change) -> Places:
    """Weights that were stored in a half type."""
    return lambda graph: _initializers(
        graph,
        lambda name, v: (
            v.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
            and v.shape is not None
            and len(v.shape) == 2
            and not name.endswith("_scale")
        ),
        change,
    )


def _bits(kept: int) -> Change:
    """Rounded to so many bits of mantissa, the hidden one included."""

    def change(array: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(array)
        return np.ldexp(np.rint(mantissa * 2.0**kept) / 2.0**kept, exponent)

    return change


def _cut(kept: int) -> Change:
    def change(array: np.ndarray) -> np.ndarray:
        mantissa, exponent = np.frexp(array)
        return np.ldexp(np.trunc(mantissa * 2.0**kept) / 2.0**kept, exponent)

    return change


def _flushed(array: np.ndarray) -> np.ndarray:
    return np.where(np.abs(array) < 0.01, 0, array)


def _pairs_exchanged(array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    even = flat.size // 2 * 2
    flat[:even] = flat[:even].reshape(-1, 2)[:, ::-1].reshape(-1)
    return flat.reshape(array.shape)


FAULTS: tuple[Fault, ...] = (
    Fault("scale of an activation 2% off, and with it what is dequantized",
          _activations(1, lambda a: a * 1.02), _ALL),
    Fault("scale of an activation 10% small: large values clip",
          _activations(1, lambda a: a * 0.9), _ALL),
    Fault("scale of an activation halved", _activations(1, lambda a: a * 0.5), _ALL),
    Fault("scale of an activation doubled", _activations(1, lambda a: a * 2), _ALL),
    Fault("zero point of an activation off by 1", _activations(2, lambda a: a + 1), _ALL),
    Fault("zero point of an activation off by 32", _activations(2, lambda a: a + 32), _ALL),
    Fault("zero point of an activation lost", _activations(2, lambda a: a * 0), _LATE),
    Fault("scales of two activations exchanged", _scales_exchanged, _ALL),
    Fault("dequantized with a scale 2% off", _dequantized_with_another, _ALL),
    Fault("an activation not quantized", _activation_left_out, _LATE),
    Fault("scale of a channel 2% off", _weight_scales(_first_channel(1.02)), _ALL),
    Fault("scales of a weight 2% off", _weight_scales(lambda a: a * 1.02), _ALL),
    Fault("scales of a weight shifted by one", _weight_scales(lambda a: np.roll(a, 1, -1)), _ALL),
    Fault("scales of a weight all the mean",
          _weight_scales(lambda a: np.full_like(a, a.mean())), _LATE),
    Fault("zero points of a weight off by one", _weight_zeros(lambda a: a + 1), _LATE),
    Fault("zero points of a weight shifted by one",
          _weight_zeros(lambda a: np.roll(a, 1, -1)), _LATE),
    Fault("codes one too large", _codes(lambda a: a + 1), _ALL),
    Fault("lowest bit of codes lost", _codes(lambda a: a & ~1), _ALL),
    Fault("codes clipped at half the range",
          _codes(lambda a: np.clip(a, *np.percentile(a, (10, 90)).astype(np.int32))), _ALL),
    Fault("codes shifted by one input", _codes(lambda a: np.roll(a, 1, 0)), _LATE),
    Fault("pairs of codes exchanged", _codes(_pairs_exchanged), ("lowering", "artifact")),
    Fault("half weights in one bit less", _halves(_bits(7)), ("rounding", "artifact")),
    Fault("half weights in 5 bits", _halves(_bits(5)), ("rounding", "artifact")),
    Fault("half weights cut, not rounded, at 8 bits", _halves(_cut(8)), _LATE),
    Fault("small half weights flushed to 0", _halves(_flushed), _LATE),
)  # fmt: skip
