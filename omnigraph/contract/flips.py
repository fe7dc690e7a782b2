"""Integers and booleans that floats choose: where these are rounded, a choice may flip.

The largest of two logits that are nearly alike, or whether a score is above a threshold, is another
once the floats are rounded otherwise. No size of an error says how often. So where nothing rounds,
such outputs are compared for equality, and where something does, by the number of elements that
are wrong in all input sets together; `omnigraph.contract.tolerance.most_wrong` says how many may
be. Those that no float leads to are exact always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.contract.tolerance import half_of, is_exact, most_wrong, wrong_elements
from omnigraph.graph import Graph

#: Ops whose result follows from the sizes of their input alone.
_SIZES = frozenset({"Shape", "Size"})
_Sets = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Flips:
    """How many elements of an output may be wrong, over all input sets.

    Args:
        rounding: by the rounding that the target's runtime does.
        total: by all that is rounded, against torch.
    """

    rounding: int
    total: int

    def of_golden(self, count: int) -> int:
        """How many of ``count`` elements of the golden pair alone may be wrong."""
        return min(self.total, half_of(count))


def chosen_by_floats(graph: Graph) -> frozenset[str]:
    """The outputs of integers and booleans that some float leads to; codes are not among them."""
    return frozenset(
        value.name or ""
        for value in graph.graph.outputs
        if value.dtype is not None and is_exact(value.dtype.numpy()) and _has_float_before(value)
    )


def most_flips(found: _Sets, expected: _Sets, name: str) -> int:
    """How many elements of an output may be wrong, where an emulation found so many wrong."""
    return most_wrong(count_flips(found, expected, name), sum(e[name].size for e in expected))


def count_flips(found: _Sets, expected: _Sets, name: str) -> int:
    """The wrong elements of an output in all input sets."""
    return sum(wrong_elements(f[name], e[name]) for f, e in zip(found, expected, strict=True))


def _has_float_before(value: ir.Value) -> bool:
    pending: list[ir.Value | None] = [value]
    seen: set[ir.Value] = set()
    while pending:
        read = pending.pop()
        if read is None or read in seen:
            continue
        seen.add(read)
        node = read.producer()
        # Constants may have no dtype; one alone chooses nothing.
        if node is not None and node.op_type == "Constant":
            continue
        if read.dtype is None or read.dtype.is_floating_point():
            return True
        if node is not None and node.op_type not in _SIZES:
            pending += _read(node)
    return False


def _read(node: ir.Node) -> Iterator[ir.Value | None]:
    """All values that a node, or a node of its inner graphs, reads."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            yield from body.outputs
            for inner in ir.traversal.RecursiveGraphIterator(body):
                yield from inner.inputs
