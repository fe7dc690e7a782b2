"""Fuses a SiLU into Swish, and splits a packed gate and its other half once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.arithmetic.activation import match_activation
from omnigraph.passes.analysis.arithmetic.polynomial import Polynomial
from omnigraph.passes.analysis.position.axis_parts import Part, last_axis_part
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import (
    axis_size,
    made_by,
    nodes_of,
    remove_unused,
    replace_output,
    standard,
)
from omnigraph.passes.site_pass import SitePass

_PRODUCT: Polynomial = {(1, 1): 1.0}


@dataclass(frozen=True)
class FuseSwiglu(SitePass):
    """Fuse x * Sigmoid(alpha * x) into Swish, and split a packed gate once.

    ONNX has no SwiGLU or GeGLU (Shazeer 2020, section 2): they stay an activation and a Mul.

    Before::

        gate, up = Slice(p, :N), Slice(p, N:)
        y        = gate * Sigmoid(gate) * up

    After::

        gate, up = Split(p)
        y        = Swish(gate) * up

    The halves of Gelu(gate) * up are split in the same way, in either order. Needs: a fixed size
    of p's last axis. Leaves alone: a Sigmoid that multiplies anything but its own argument, as the
    gate of a GLU does; halves that are split already.
    """

    makes: ClassVar[tuple[str, ...]] = ("Swish",)

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Every Sigmoid in a product, and every Swish or Gelu of one of two slices."""
        for node in nodes_of(graph, "Sigmoid", "Swish", "Gelu"):
            if node.op_type == "Sigmoid":
                if any(standard(user, "Mul") for user, _ in node.outputs[0].uses()):
                    yield node
            elif _other_half(node) is not None:
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Fuse a Sigmoid into a Swish, and the slices around it into a Split."""
        said = "slices of an activation's gate"
        if node.op_type == "Sigmoid":
            node, said = _fuse_swish(node)
        pair = _other_half(node)
        if pair is not None:
            _split(*pair)
            return f"{said}, split once from its other half"
        gated = any(standard(user, "Mul") for user, _ in node.outputs[0].uses())
        return f"{said}, the gate of a product" if gated else said


def _fuse_swish(node: ir.Node) -> tuple[ir.Node, str]:
    x, end, inner = match_activation(
        node,
        lambda found: found.keys() == {(1,)},
        _PRODUCT,
        ("a multiple of x", "x * sigmoid(x): what it is multiplied with is something else"),
    )
    alpha = inner[(1,)]
    new = Inserter(end).node("Swish", x, alpha=alpha)
    replace_output(end.outputs[0], new.outputs[0])
    remove_unused(end)
    return new, "Swish" if alpha == 1.0 else f"Swish, alpha {alpha:g}"


def _other_half(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The slices of the two halves of one value: the gate, and the half that it multiplies."""
    gate = made_by(node.inputs[0], "Slice")
    part = last_axis_part(node.inputs[0])
    if gate is None or part is None or not _is_half(part):
        return None
    for user, index in node.outputs[0].uses():
        if not standard(user, "Mul"):
            continue
        other = user.inputs[1 - index]
        found, up = last_axis_part(other), made_by(other, "Slice")
        if found is None or up is None or up.graph is not gate.graph:
            continue
        if found.source is part.source and _is_half(found) and found.start != part.start:
            return gate, up
    return None


def _is_half(part: Part) -> bool:
    size = axis_size(part.source, -1)
    assert size is not None
    halves = [(0, size // 2), (size // 2, size)]
    return size % 2 == 0 and part.step == 1 and (part.start, part.stop) in halves


def _split(gate: ir.Node, up: ir.Node) -> None:
    """Replace two Slices by one Split."""
    part = last_axis_part(gate.outputs[0])
    assert part is not None
    first, second = (gate, up) if part.start == 0 else (up, gate)
    # The value split may be made just before either: after its maker is before both.
    graph = gate.graph
    assert graph is not None
    earlier = gate if list(graph).index(gate) < list(graph).index(up) else up
    split = Inserter(earlier).node("Split", part.source, outputs=2, axis=-1, num_outputs=2)
    for old, new in zip((first, second), split.outputs, strict=True):
        replace_output(old.outputs[0], new)
        remove_unused(old)
