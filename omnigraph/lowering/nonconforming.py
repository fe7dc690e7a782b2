"""Nodes that all vendors' runtimes compute differently from the ONNX standard."""

from __future__ import annotations

import onnx_ir as ir

_SCALES, _SIZES = 2, 3


def nonconforming(node: ir.Node) -> str | None:
    """Why all runtimes compute a node differently from the standard, or None.

    Found with the standard's own node tests (``python -m benchmarks.conformance``), on onnxruntime
    1.32 and OpenVINO 2026.4.
    """
    if node.domain != "":
        return None
    if node.op_type in ("AveragePool", "MaxPool"):
        ceiled = node.attributes.get_int("ceil_mode", 0)
        padded = any(node.attributes.get_ints("pads", [])) or _pads_itself(node)
        if ceiled and padded:
            return "with ceil_mode, runtimes count windows that begin in the padding"
    if node.op_type == "Resize" and _aligned(node) and not _keeps_whole(node):
        return "runtimes align corners wrongly where scales give no whole length"
    return None


def _pads_itself(node: ir.Node) -> bool:
    return node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME")


def _aligned(node: ir.Node) -> bool:
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    given = [i for i, value in enumerate(node.inputs) if value is not None]
    return mode == "align_corners" and _SIZES not in given


def _keeps_whole(node: ir.Node) -> bool:
    """Whether the scales of a Resize are known to give whole lengths."""
    scales = node.inputs[_SCALES] if len(node.inputs) > _SCALES else None
    tensor = ir.convenience.get_const_tensor(scales) if scales is not None else None
    if tensor is None:
        return False
    image = node.inputs[0]
    sizes = list(image.shape) if image is not None and image.shape is not None else []
    axes = node.attributes.get_ints("axes") or range(tensor.size)
    for axis, scale in zip(axes, tensor.numpy().tolist(), strict=True):
        size = sizes[axis] if axis < len(sizes) else None
        if not float(scale).is_integer() and not (
            isinstance(size, int) and (size * scale).is_integer()
        ):
            return False
    return True
