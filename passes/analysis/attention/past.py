"""Finds keys and values that are concatenated with a past, which Attention does by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.passes.matching import made_by, rank, replace_output, same_dim


@dataclass(frozen=True)
class ConcatenatedPast:
    """The Concats of pasts [B, H, P, D] with new keys and values [B, H, T, D].

    Args:
        keys: the Concat of keys.
        values: the Concat of values.
    """

    keys: ir.Node
    values: ir.Node

    @property
    def key(self) -> ir.Value:
        """The keys of the past."""
        return _given(self.keys, 0)

    @property
    def value(self) -> ir.Value:
        """The values of the past."""
        return _given(self.values, 0)

    @property
    def new_key(self) -> ir.Value:
        """The keys after the past."""
        return _given(self.keys, 1)

    @property
    def new_value(self) -> ir.Value:
        """The values after the past."""
        return _given(self.values, 1)

    def replace(self, present_key: ir.Value, present_value: ir.Value) -> None:
        """Put the present of an Attention in the place of the concatenated keys and values."""
        replace_output(self.keys.outputs[0], present_key)
        replace_output(self.values.outputs[0], present_value)


def concatenated_past(
    key: ir.Value, value: ir.Value, others: Iterable[ir.Value | None]
) -> ConcatenatedPast | None:
    """The past of keys and values [B, H, S, D], if the Attention itself can concatenate it.

    It cannot where one of its inputs depends on the concatenation: a mask as long as the keys, for
    example.

    Args:
        key, value: the keys and the values, with their past.
        others: the other inputs of the Attention.
    """
    joins = [_join(key), _join(value)]
    if joins[0] is None or joins[1] is None or joins[0] is joins[1]:
        return None
    past = ConcatenatedPast(joins[0], joins[1])
    if not same_dim(_length(past.key), _length(past.value)):
        return None
    read = [*others, past.key, past.value, past.new_key, past.new_value]
    return None if _depend_on(read, {past.keys, past.values}) else past


def _join(value: ir.Value) -> ir.Node | None:
    node = made_by(value, "Concat")
    if node is None or len(node.inputs) != 2 or rank(value) != 4:
        return None
    if node.attributes.get_int("axis", 0) not in (2, -2) or node.inputs[0] is node.inputs[1]:
        return None
    return node if all(v is not None and v.shape is not None for v in node.inputs) else None


def _length(value: ir.Value) -> int | ir.SymbolicDim:
    assert value.shape is not None
    return value.shape[2]


def _given(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _depend_on(values: list[ir.Value | None], nodes: set[ir.Node]) -> bool:
    stack, seen = list(values), set()
    while stack:
        value = stack.pop()
        node = value.producer() if value is not None else None
        if node in nodes:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack += node.inputs
    return False
