"""Reads a value as a part of the last axis of another value."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.matching import axis_size, constant, input_at, made_by, rank


@dataclass(frozen=True)
class Part:
    """The places ``start``, ``start + step``, … before ``stop`` on the last axis of ``source``."""

    source: ir.Value
    start: int
    stop: int
    step: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is the source itself."""
        return (self.start, self.stop, self.step) == (0, axis_size(self.source, -1), 1)


def last_axis_part(value: ir.Value | None) -> Part | None:
    """The part that a Slice or an output of a Split is; None where its size is not fixed."""
    node = made_by(value, "Slice", "Split")
    source = node.inputs[0] if node is not None else None
    size, dims = axis_size(source, -1), rank(source)
    if node is None or value is None or source is None or size is None or dims is None:
        return None
    if node.op_type == "Slice":
        return _sliced(node, source, size, dims)
    if node.attributes.get_int("axis", 0) not in (-1, dims - 1):
        return None
    sizes = [axis_size(output, -1) for output in node.outputs]
    before = sizes[: value.index() or 0]
    own = axis_size(value, -1)
    if own is None or None in before:
        return None
    start = sum(s for s in before if s is not None)
    return Part(source, start, start + own)


def without_whole_slices(value: ir.Value | None) -> ir.Value | None:
    """The value before Slices that take all of it."""
    while (node := made_by(value, "Slice")) is not None and whole_slice(node):
        value = node.inputs[0]
    return value


def whole_slice(node: ir.Node) -> bool:
    """Whether a Slice takes every place of the axes that it names."""
    found = _bounds(node)
    if found is None:
        return False
    return all(
        start == 0 and step == 1 and stop >= (axis_size(node.inputs[0], axis) or 1 << 31)
        for axis, (start, stop, step) in found.items()
    )


def _sliced(node: ir.Node, source: ir.Value, size: int, dims: int) -> Part | None:
    found = _bounds(node)
    if found is None or not {dims - 1, -1} & set(found) or len(found) != 1:
        return None
    ((start, stop, step),) = found.values()
    start, stop = (max(0, n + size) if n < 0 else min(n, size) for n in (start, stop))
    return Part(source, start, stop, step) if step > 0 and start < stop else None


def _bounds(node: ir.Node) -> dict[int, tuple[int, int, int]] | None:
    """Start, stop and step of each axis of a Slice, where they are all constant."""
    arrays = [constant(input_at(node, index)) for index in (1, 2, 3, 4)]
    starts, stops, axes, steps = (
        None if array is None else array.reshape(-1).tolist() for array in arrays
    )
    given = [input_at(node, index) is not None for index in (3, 4)]
    if starts is None or stops is None or (given[0] and axes is None):
        return None
    if given[1] and steps is None:
        return None
    places = zip(starts, stops, steps or [1] * len(starts), strict=True)
    return dict(zip(axes or range(len(starts)), places, strict=True))
