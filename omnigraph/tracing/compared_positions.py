"""The numbers that a traced Graph compares its positions with, such as the width of a window.

A mask computes them from values, so torch makes no guard of them: ``key > query - 100`` hides no
key of a sequence shorter than 101. What a pass does wrong beyond such a number shows only there.
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


def compared_positions(graph: Graph) -> list[int]:
    """The integers that values are compared with, after sums and differences, each once."""
    found: set[int] = set()
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.op_type in _COMPARISONS:
            found.update(_numbers(node, _STEPS))
    return sorted(found)


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
