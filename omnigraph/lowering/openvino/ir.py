"""Writes OpenVINO IR files of several programs that share one file of weights.

An IR is an XML of layers, whose constants say where in a binary file their data stand
(OpenVINO documentation, "Operation sets and IR", Const-1). Nothing here needs OpenVINO.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx

from omnigraph.lowering.openvino.wide_positions import keep_positions_wide, mark

#: Constants stand at multiples of this, a cache line and the widest vector.
_ALIGNMENT = 64

#: The IR's names of the ONNX types of weights.
_TYPES = {
    onnx.TensorProto.FLOAT: "f32",
    onnx.TensorProto.DOUBLE: "f64",
    onnx.TensorProto.FLOAT16: "f16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.INT4: "i4",
    onnx.TensorProto.UINT4: "u4",
    onnx.TensorProto.INT8: "i8",
    onnx.TensorProto.INT16: "i16",
    onnx.TensorProto.INT32: "i32",
    onnx.TensorProto.INT64: "i64",
    onnx.TensorProto.UINT8: "u8",
    onnx.TensorProto.UINT16: "u16",
    onnx.TensorProto.UINT32: "u32",
    onnx.TensorProto.UINT64: "u64",
    onnx.TensorProto.BOOL: "boolean",
    onnx.TensorProto.FLOAT8E4M3FN: "f8e4m3",
    onnx.TensorProto.FLOAT8E5M2: "f8e5m2",
}


_HALVES = ("f16", "bf16")


@dataclass(frozen=True)
class WeightPlace:
    """The place of one weight in the shared file: its IR type, offset and size in bytes."""

    element_type: str
    offset: int
    size: int


def weights_as_inputs(proto: onnx.ModelProto) -> dict[str, WeightPlace]:
    """Make each weight with external data an input, and give the place of its data.

    OpenVINO's frontend needs the type and shape of an input only: it reads and copies no data.

    Returns:
        By name, the place of each weight.
    """
    places: dict[str, WeightPlace] = {}
    small = []
    for tensor in proto.graph.initializer:
        element_type = _TYPES.get(tensor.data_type)
        if tensor.data_location != onnx.TensorProto.EXTERNAL or element_type is None:
            small.append(tensor)
            continue
        external = {entry.key: entry.value for entry in tensor.external_data}
        places[tensor.name] = WeightPlace(
            element_type, int(external["offset"]), int(external["length"])
        )
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return places


class SharedWeights:
    """The one file of weights: data are appended at its end, each content once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}

    def place(self, data: bytes) -> int:
        """The offset of ``data``, written only if not there yet."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._offsets:
            with open(self.path, "ab") as stream:
                stream.write(bytes(-stream.tell() % _ALIGNMENT))
                self._offsets[digest] = stream.tell()
                stream.write(data)
        return self._offsets[digest]


def rewrite_ir(
    xml: Path,
    binary: Path,
    places: Mapping[str, WeightPlace],
    weights: SharedWeights,
    out: Path,
    *,
    half_matmuls: bool,
) -> None:
    """Write an IR whose every constant stands in the shared file.

    Args:
        xml: an IR that OpenVINO wrote, with a Parameter of each weight's name.
        binary: the data of the constants it has.
        places: by Parameter name, the weight that it becomes.
        weights: the shared file, which gets the constants of ``binary``.
        out: where the IR is written.
        half_matmuls: whether MatMuls are computed in a half type, so that half weights need not
            be widened. (Where they are computed in f32, a kernel that widens weights itself makes
            a new layout of them for each new length, and keeps them all.)
    """
    tree = ElementTree.parse(xml)
    with open(binary, "rb") as stream:
        for layer in tree.iter("layer"):
            _drop_counters(layer)
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None:
                stream.seek(int(data.attrib["offset"]))
                content = stream.read(int(data.attrib["size"]))
                data.set("offset", str(weights.place(content)))
            elif layer.get("type") == "TopK" and data is not None:
                data.set("stable", "true")  # of equal elements the first (ONNX TopK-24)
            elif layer.get("type") == "Parameter" and layer.get("name") in places:
                _make_constant(layer, places[layer.attrib["name"]])
    keep_positions_wide(tree.getroot())
    if half_matmuls:
        _mark_decompressions(tree.getroot())
    tree.write(out, encoding="utf-8", xml_declaration=True)


def constant_hashes(xml: np.ndarray, weights: np.ndarray, sizes: Collection[int]) -> set[str]:
    """The sha256 of each constant of an IR, of those of the given sizes in bytes.

    Args:
        xml: the bytes of the IR.
        weights: the bytes of its file of weights.
    """
    found = set()
    for layer in ElementTree.fromstring(xml.tobytes()).iter("layer"):
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and int(data.get("size", 0)) in sizes:
            start = int(data.attrib["offset"])
            content = weights[start : start + int(data.attrib["size"])]
            found.add(hashlib.sha256(content.data).hexdigest())
    return found


def _drop_counters(layer: ElementTree.Element) -> None:
    """Remove a layer's former names: they hold a counter of the process."""
    for info in layer.findall("rt_info"):
        for attribute in info.findall("attribute"):
            if attribute.get("name") == "fused_names":
                info.remove(attribute)


def _mark_decompressions(net: ElementTree.Element) -> None:
    """Mark each Convert of a half weight as a decompression, so that OpenVINO keeps it.

    Without the mark, OpenVINO widens the weight at load, and keeps the wide copy beside the layout
    that a kernel makes of it.
    """
    layers = {layer.get("id"): layer for layer in net.iter("layer")}
    for edge in net.iter("edge"):
        weight, convert = layers[edge.get("from-layer")], layers[edge.get("to-layer")]
        data = weight.find("data")
        if weight.get("type") != "Const" or convert.get("type") != "Convert" or data is None:
            continue
        if data.get("element_type") in _HALVES:
            mark(convert, "decompression")


def _make_constant(layer: ElementTree.Element, place: WeightPlace) -> None:
    data = layer.find("data")
    assert data is not None
    shape = data.attrib["shape"]
    layer.set("type", "Const")
    data.attrib.clear()
    data.attrib.update(
        element_type=place.element_type,
        shape=shape,
        offset=str(place.offset),
        size=str(place.size),
    )
