"""Follows an attention's output to the output projection, the matrix that mixes its heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omnigraph.passes.analysis.pruning.axis_slice import axis_through_reshape
from omnigraph.passes.matching import axis_size, constant, only_use, rank, standard
from omnigraph.passes.site_pass import Miss


@dataclass
class OutputProjection:
    """The product that mixes the heads of an attention, and the values on the way to it.

    Args:
        node: the MatMul or Gemm; its weight has a row for each feature of each head.
        weight: that weight.
        axis: the axis of features in the weight.
        owner: the head of each feature, [features].
        factor: the product of the constant gates on each feature, [features].
        values: the values on the way, from the attention's output on: each with its axis of heads,
            and the head of each element of that axis.
        gates: nodes that multiply by a gate that depends on the input, and the gate.
        constants: nodes that multiply by a constant gate; ``factor`` has their factors.
    """

    node: ir.Node
    weight: ir.Value
    axis: int
    owner: np.ndarray
    factor: np.ndarray
    values: list[tuple[ir.Value, int, np.ndarray]]
    gates: list[tuple[ir.Node, ir.Value]] = field(default_factory=list)
    constants: list[ir.Node] = field(default_factory=list)

    def silent(self, heads: int) -> set[int]:
        """The heads that add nothing: their gate is 0, or their rows of the weight are 0."""
        weight = ir.convenience.get_const_tensor(self.weight)
        assert weight is not None
        rows = np.moveaxis(weight.numpy(), self.axis, 0)
        gives = (self.factor != 0) & rows.any(axis=1)
        return {head for head in range(heads) if not gives[self.owner == head].any()}


def find_output_projection(output: ir.Value, axis: int, owner: np.ndarray) -> OutputProjection:
    """Follow an attention's output to the projection of its heads.

    Args:
        output: [B, H, T, D] or [B, T, H * D].
        axis: its axis of heads.
        owner: the head of each element of that axis.

    Raises:
        Miss: something else reads the heads, or what mixes them is no constant matrix.
    """
    values, factor = [(output, axis, owner)], np.ones(len(owner))
    gates: list[tuple[ir.Node, ir.Value]] = []
    constants: list[ir.Node] = []
    value = output
    while True:
        node = only_use(value)
        if node is None:
            raise Miss(_read_elsewhere(value))
        if standard(node, "MatMul", "Gemm"):
            weight = _weight_of(node, value, axis)
            transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
            side = 1 if transposed else 0
            return OutputProjection(node, weight, side, owner, factor, values, gates, constants)
        if standard(node, "Mul"):
            other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
            assert other is not None
            if rank(node.outputs[0]) != rank(value):
                raise Miss("a gate has more axes than the heads that it multiplies", at=node)
            along = _per_element(other, value, axis)
            if along is not None:
                factor = factor * along
                constants.append(node)
            else:
                gates.append((node, other))
        elif standard(node, "Transpose"):
            perm = node.attributes.get_ints("perm") or tuple(reversed(range(rank(value) or 0)))
            axis = tuple(perm).index(axis)
        elif standard(node, "Reshape"):
            axis, owner, factor = _reshaped(node, value, axis, owner, factor)
        elif not standard(node, "Cast", "Identity"):
            raise Miss(f"its heads go into {node.op_type}", at=node)
        value = node.outputs[0]
        values.append((value, axis, owner))


def _read_elsewhere(value: ir.Value) -> str:
    if value.is_graph_output():
        return f"its heads are in output {value.name!r} of the program"
    users = sorted({user.op_type for user, _ in value.uses()})
    return f"its heads are read by {len(users)} kinds of nodes: {', '.join(users) or 'none'}"


def _weight_of(node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    weight = node.inputs[1]
    if node.inputs[0] is not value or axis != (rank(value) or 0) - 1:
        raise Miss("its heads are not the rows of the output projection", at=node)
    if node.attributes.get_int("transA", 0):
        raise Miss("the output projection reads its heads transposed", at=node)
    if weight is None or ir.convenience.get_const_tensor(weight) is None or rank(weight) != 2:
        raise Miss("the output projection is not a constant matrix", at=node)
    return weight


def _per_element(gate: ir.Value, value: ir.Value, axis: int) -> np.ndarray | None:
    """The numbers of a constant gate along the axis of heads; None where it is another gate."""
    array, size = constant(gate), axis_size(value, axis)
    if array is None or size is None or array.size not in (1, size):
        return None
    place = axis - ((rank(value) or 0) - array.ndim)
    if array.size > 1 and (place < 0 or array.shape[place] != size):
        return None
    return np.broadcast_to(array.reshape(-1).astype(np.float64), (size,))


def _reshaped(
    node: ir.Node, value: ir.Value, axis: int, owner: np.ndarray, factor: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """The axis of heads, the owners and the factors after a Reshape."""
    result = node.outputs[0]
    places = list(_elements(value, result, axis, len(owner)))
    if any(place is None for place in places):
        raise Miss("a Reshape mixes heads with another axis", at=node)
    found = [place for place in places if place is not None]
    axes = {place[0] for place in found}
    size = axis_size(result, found[0][0])
    if len(axes) != 1 or size is None:
        raise Miss("a Reshape mixes heads with another axis", at=node)
    owners, factors = np.empty(size, np.int64), np.empty(size)
    for element, (_, at) in enumerate(found):
        owners[list(at)], factors[list(at)] = owner[element], factor[element]
    return axes.pop(), owners, factors


def _elements(
    value: ir.Value, result: ir.Value, axis: int, size: int
) -> Iterator[tuple[int, tuple[int, ...]] | None]:
    """The place of each element of an axis after a Reshape."""
    for element in range(size):
        yield axis_through_reshape(value, result, axis, (element,))
