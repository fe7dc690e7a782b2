"""Keeps positions in f32 in an OpenVINO IR that is computed in a half type.

No bf16 holds every integer above 256, and the sine of a position that was rounded is another
number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    import openvino

_INTEGERS = frozenset(["I32", "I64", "U32", "U64"])
#: Their results are no positions any more: they are of one size, whatever the position.
_BOUNDED = frozenset(["Sin", "Cos"])
#: A row of a table, which is read by position, is no position.
_TABLES = frozenset(["Gather", "GatherElements", "GatherND"])


def separate_conversions(model: openvino.Model) -> None:
    """Put a Reshape that changes nothing behind each conversion of integers to f32.

    Where a model has quantized weights, the plugin takes an integer, its conversion and a product
    with a constant for a dequantization. It makes another node of them, without attributes.

    Args:
        model: OpenVINO's, changed in place.
    """
    from openvino import opset15

    for convert in model.get_ordered_ops():
        if convert.get_type_name() != "Convert":
            continue
        before, after = (
            each.get_element_type().to_string() for each in (convert.input(0), convert.output(0))
        )
        shape = convert.get_output_partial_shape(0)
        if after != "f32" or before not in ("i32", "i64", "u32", "u64") or shape.rank.is_dynamic:
            continue
        moving = [axis for axis, dim in enumerate(shape) if dim.is_dynamic]
        readers = list(convert.output(0).get_target_inputs())
        if not moving or not readers:
            continue
        sizes = [-1 if axis == moving[-1] else 0 for axis in range(len(shape))]
        same = opset15.reshape(convert.output(0), opset15.constant(sizes), True)
        for reader in readers:
            reader.replace_source_output(same.output(0))


def keep_positions_wide(net: ElementTree.Element) -> None:
    """Mark each layer that computes floats from integers alone, so that a half type is not used.

    OpenVINO's plugins compute a layer with the attribute ``precise`` in the type of the IR.

    Args:
        net: the root of an IR, its layers in the order in which they run.
    """
    layers = list(net.iter("layer"))
    before: dict[str | None, list[str | None]] = {}
    for edge in net.iter("edge"):
        before.setdefault(edge.get("to-layer"), []).append(edge.get("from-layer"))
    types = {layer.get("id"): layer for layer in layers}
    wide: set[str | None] = set()
    for layer in layers:
        inputs = [types[number] for number in before.get(layer.get("id"), [])]
        given = [one for one in inputs if one.get("type") != "Const"]
        if _result(layer) != "FP32" or not given or layer.get("type") in _TABLES:
            continue
        starts = layer.get("type") == "Convert" and _result(given[0]) in _INTEGERS
        goes_on = all(one.get("id") in wide and one.get("type") not in _BOUNDED for one in given)
        if starts or goes_on:
            wide.add(layer.get("id"))
            mark(layer, "precise")


def mark(layer: ElementTree.Element, attribute: str) -> None:
    """Give a layer an attribute of OpenVINO's, without a value."""
    info = layer.find("rt_info")
    if info is None:
        info = ElementTree.Element("rt_info")
        layer.insert(1 if layer.find("data") is not None else 0, info)
    ElementTree.SubElement(info, "attribute", name=attribute, version="0")


def _result(layer: ElementTree.Element) -> str | None:
    """The type of a layer's first output."""
    port = layer.find("output/port")
    return port.get("precision") if port is not None else None
