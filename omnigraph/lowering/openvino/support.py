"""Nodes that OpenVINO's frontend takes, but that OpenVINO computes wrongly or cannot load.

Found with the standard's own node tests (``python -m benchmarks.conformance``) and at larger sizes
(``tests/lowering/test_openvino_numbers.py``), on the CPU plugin of OpenVINO 2026.4.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from omnigraph.lowering.nonconforming import nonconforming

_MASK, _SCORES = 3, 3
#: Types to which a cast must clamp, but OpenVINO's does not.
_NARROW = frozenset("FLOAT8E4M3FN FLOAT8E5M2 FLOAT4E2M1 INT4 UINT4".split())
_HALVES_AND_FLOAT = frozenset("FLOAT FLOAT16 BFLOAT16".split())


def computed_wrongly(node: ir.Node) -> str | None:
    """Why OpenVINO gives no numbers, or wrong ones, for a node that it takes, or None."""
    condition = _CONDITIONS.get(node.op_type)
    return nonconforming(node) or (condition(node) if condition is not None else None)


def _attention(node: ir.Node) -> str | None:
    mask = node.inputs[_MASK] if len(node.inputs) > _MASK else None
    causal = node.attributes.get_int("is_causal", 0)
    if mask is None and not causal:
        return "without a mask, its kernel divides by a wrong sum over 16 keys or more"
    if causal and len(node.outputs) > _SCORES:
        return "it gives the scores of a causal attention without their mask"
    return None


def _cast(node: ir.Node) -> str | None:
    value, result = node.inputs[0], node.outputs[0].dtype
    given = value.dtype if value is not None else None
    if given is None or result is None:
        return None
    kinds = {given.name, result.name}
    if "DOUBLE" in kinds and kinds & _HALVES_AND_FLOAT:
        return "between double and narrower floats, it makes infinities finite"
    if result.name in _NARROW and given.is_floating_point():
        return f"it does not clamp to the range of {result.name.lower()}"
    return None


def _einsum(node: ir.Node) -> str | None:
    letters = any(c.isalpha() for c in node.attributes.get_string("equation", ""))
    return None if letters else "an equation without indices gives 0"


def _if(node: ir.Node) -> str | None:
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for pair in zip(*(branch.outputs for branch in branches), strict=True):
        ranks = {None if value.shape is None else len(value.shape) for value in pair}
        if len(ranks - {None}) > 1:
            return (
                f"its branches give {' and '.join(map(str, sorted(filter(None, ranks))))} axes; "
                "fix the size that it asks for, with --dynamic DIM=SIZE:SIZE"
            )
    return None


def _pool(node: ir.Node) -> str | None:
    ceiled = node.attributes.get_int("ceil_mode", 0)
    return "with ceil_mode, it keeps windows that begin outside the input" if ceiled else None


def _resize(node: ir.Node) -> str | None:
    if node.attributes.get_int("antialias", 0):
        return "its antialiasing uses other weights than the standard"
    if node.attributes.get_int("exclude_outside", 0):
        return "it ignores exclude_outside"
    if node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "it does not keep the aspect ratio"
    return None


def _tile(node: ir.Node) -> str | None:
    repeats = node.inputs[1]
    if repeats is not None and repeats.is_graph_input():
        return "repeats that are an input of the program give memory that was never written"
    return None


_CONDITIONS: dict[str, Callable[[ir.Node], str | None]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Cast": _cast,
    "Einsum": _einsum,
    "If": _if,
    "MaxPool": _pool,
    "Resize": _resize,
    "Tile": _tile,
}
