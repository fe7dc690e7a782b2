"""The numbers beyond which positions of a traced Graph may go wrong: the width of a window, 256.

A mask compares positions with values, so torch makes no guard of them: ``key > query - 100`` hides
no key of a sequence shorter than 101. Positions as floats are exact in bf16 up to 256. What a pass
or a target does wrong beyond such a number shows only there.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from omnigraph.graph import Graph

_COMPARISONS = frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual"})
#: Ops between a number and its comparison.
_THROUGH = frozenset(
    "Abs Add Cast CastLike Clip Expand Identity Max Min Neg Reshape Sub Unsqueeze".split()
)
#: Nodes between them, at most.
_STEPS = 6
#: bf16 holds every integer up to this.
_EXACT_IN_BF16 = 256
#: What makes positions.
_COUNTS = frozenset("Range CumSum".split())
_FLOATS = frozenset([ir.DataType.FLOAT, ir.DataType.DOUBLE])


def compared_positions(graph: Graph, *, rounds: bool = True) -> list[int]:
    """The integers that values are compared with, after sums and differences, each once.

    256 is one of them where positions become floats that a target rounds.

    Args:
        rounds: whether a target computes floats in a half type.
    """
    found: set[int] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.op_type in _COMPARISONS:
            found.update(_numbers(node, _STEPS))
        elif rounds and _gives_floats(node) and _counts(node, _STEPS):
            found.add(_EXACT_IN_BF16)
    return sorted(found)


def _gives_floats(node: ir.Node) -> bool:
    return node.op_type in ("Cast", "CastLike") and node.outputs[0].dtype in _FLOATS


def _counts(node: ir.Node, steps: int) -> bool:
    """Whether a node, or one before it, counts positions."""
    if node.op_type in _COUNTS:
        return True
    producers = [value.producer() for value in node.inputs if value is not None]
    return steps > 0 and any(_counts(one, steps - 1) for one in producers if one is not None)


def _numbers(node: ir.Node, steps: int) -> Iterator[int]:
    """The sizes of the integer scalars that a node, or one before it, reads."""
    for value in filter(None, node.inputs):
        tensor = ir.convenience.get_const_tensor(value)
        producer = value.producer()
        if tensor is not None:
            if tensor.size == 1 and tensor.dtype.is_integer():
                yield abs(int(tensor.numpy().item()))
        elif producer is not None and steps and producer.op_type in _THROUGH:
            yield from _numbers(producer, steps - 1)
