"""Writes a rotation of the first features of a head in the form that OpenVINO fuses."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, input_at, nodes_of, rank, replace_output

_POSITIONS = 3


@dataclass(frozen=True)
class DecomposePartialRotary(Pass):
    """Write a partial RotaryEmbedding of halves as products with twice-stored cosines and sines.

    Before, with x [B, H, T, D], R < D and cos, sin [B, T, R/2]::

        y = RotaryEmbedding[rotary_embedding_dim=R](x, cos, sin)

    After, with a, b the halves of x[:R]::

        c, s = Unsqueeze(Concat(cos, cos), 1), Unsqueeze(Concat(sin, sin), 1)
        y    = Concat(x[:R] * c + Concat(-b, a) * s, x[R:])

    OpenVINO's frontend writes the op as a Concat in a Concat. Its optimizer joins the two before
    its plugin looks for a rotation. The plugin runs the form above as one RoPE.

    Needs: known sizes of D and R. Leaves alone: rotations of whole heads or of neighbours, which
    the plugin fuses; rotations by positions from a table; x of three axes.
    """

    def apply(self, graph: Graph) -> bool:
        """Rewrite in place; whether anything changed."""
        found = [node for node in nodes_of(graph, "RotaryEmbedding") if _is_partial(node)]
        for node in found:
            _write_out(node)
        return bool(found)


def _is_partial(node: ir.Node) -> bool:
    size, features = (
        node.attributes.get_int("rotary_embedding_dim", 0),
        axis_size(node.inputs[0], 3),
    )
    if features is None or rank(node.inputs[0]) != 4 or input_at(node, _POSITIONS) is not None:
        return False
    return 0 < size < features and not node.attributes.get_int("interleaved", 0)


def _write_out(node: ir.Node) -> None:
    x, before = node.inputs[0], Inserter(node)
    assert x is not None
    size = node.attributes.get_int("rotary_embedding_dim", 0)
    cosines, sines = (
        before.op("Unsqueeze", before.op("Concat", cache, cache, axis=-1), before.integers(1))
        for cache in node.inputs[1:3]
    )
    rotated, rest = _part(before, x, 0, size), _part(before, x, size, axis_size(x, 3) or size)
    first = _part(before, rotated, 0, size // 2)
    second = _part(before, rotated, size // 2, size)
    swapped = before.op("Concat", before.op("Neg", second), first, axis=-1)
    products = before.op("Mul", rotated, cosines), before.op("Mul", swapped, sines)
    y = before.op("Concat", before.op("Add", *products), rest, axis=-1)
    replace_output(node.outputs[0], y)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _part(before: Inserter, value: ir.Value, start: int, stop: int) -> ir.Value:
    bounds = (before.integers(bound) for bound in (start, stop, 3))
    return before.op("Slice", value, *bounds)
