"""Slices a value along one axis by slicing the weights and inputs that it is computed from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph
from omnigraph.passes.analysis.pruning.axis_slice import AxisSlice, rank_of, size_of, sliced_shape
from omnigraph.passes.analysis.pruning.slice_rules import Computed, FirstInput, SameNode, rule_for
from omnigraph.passes.matching import axis_size, constant, made_by, standard
from omnigraph.passes.site_pass import Miss

#: In ``meta`` of an input or an output of the Graph: the `AxisSlice` that it was given.
KEPT = "omnigraph.kept"


class AxisSlicer:
    """Makes sliced values beside the old ones; a `Miss` leaves the Graph as it was.

    ``commit`` puts the new nodes into the Graph, and ``discard`` drops them. An input of the Graph
    that is sliced is listed in ``inputs``, and gets its smaller shape by ``commit``.

    Args:
        graph: the Graph of the values.
        boundary: whether inputs of the Graph may be sliced.
    """

    def __init__(self, graph: Graph, *, boundary: bool) -> None:
        self.graph, self.boundary = graph, boundary
        self.inputs: dict[ir.Value, AxisSlice] = {}
        #: The products (of a projection, mostly) that sliced products replace.
        self.projections: set[ir.Node] = set()
        self._made: dict[tuple[ir.Value, AxisSlice], ir.Value] = {}
        self._nodes: dict[tuple[ir.Node, AxisSlice], ir.Node] = {}
        self._weights: list[ir.Value] = []

    def sliced(self, value: ir.Value, axis_slice: AxisSlice) -> ir.Value:
        """The slice of a value.

        Raises:
            Miss: no rule says how to slice what the value is computed from.
        """
        size = size_of(value, axis_slice.axis)
        if axis_slice.kept == tuple(range(size)):
            return value
        key = (value, axis_slice)
        if key not in self._made:
            self._made[key] = self._sliced(value, axis_slice)
        return self._made[key]

    def sliced_weight(
        self, value: ir.Value, axis_slice: AxisSlice, scale: np.ndarray | None = None
    ) -> ir.Value:
        """The slice of a constant, computed when it is written.

        Args:
            scale: a factor for each kept element, [len(kept)].
        """
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        kept = np.array(axis_slice.kept, np.int64)
        shape = [int(size) for size in tensor.shape.numpy()]
        shape[axis_slice.axis] = len(kept)
        factor = None
        if scale is not None:
            factor = scale.reshape([-1 if a == axis_slice.axis else 1 for a in range(len(shape))])
        name = _free_name(f"{value.name or 'constant'}_cut", self.graph, self._weights)

        def compute() -> ir.TensorProtocol:
            array = tensor.numpy().take(kept, axis=axis_slice.axis)
            if factor is not None:
                array = (array * factor).astype(array.dtype)
            return ir.tensor(np.ascontiguousarray(array), name=name)

        lazy = ir.LazyTensor(compute, dtype=tensor.dtype, shape=ir.Shape(shape), name=name)
        new = ir.Value(
            name=name,
            shape=ir.Shape(shape),
            type=ir.TensorType(tensor.dtype),
            const_value=lazy,
        )
        self._weights.append(new)
        return new

    def gathered(self, value: ir.Value, axis_slice: AxisSlice, before: ir.Node) -> ir.Value:
        """The slice of a value that is computed whole, by a Gather before a node."""
        index = np.array(axis_slice.kept, np.int64)
        name = _free_name("kept_heads", self.graph, self._weights)
        kept = ir.Value(
            name=name,
            shape=ir.Shape(index.shape),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(index, name=name),
        )
        self._weights.append(kept)
        node = ir.Node("", "Gather", [value, kept], [ir.AttrInt64("axis", axis_slice.axis)])
        node.outputs[0].type, node.outputs[0].shape = value.type, sliced_shape(value, axis_slice)
        self._nodes[before, axis_slice] = node
        return node.outputs[0]

    def sliced_or_gathered(
        self, value: ir.Value, axis_slice: AxisSlice, before: ir.Node
    ) -> ir.Value:
        """The slice of a value by `sliced`, and by `gathered` where that is a `Miss`."""
        kept = dict(self._made), dict(self._nodes), list(self._weights)
        projections, inputs = set(self.projections), dict(self.inputs)
        try:
            return self.sliced(value, axis_slice)
        except Miss:
            for key, node in self._nodes.items():
                if key not in kept[1]:
                    node.resize_inputs(0)
            self._made, self._nodes, self._weights = kept
            self.projections, self.inputs = projections, inputs
            return self.gathered(value, axis_slice, before)

    def shape_of(self, node: ir.Node, axis_slice: AxisSlice) -> ir.Value:
        """The shape input of a Reshape or an Expand whose output is sliced.

        Raises:
            Miss: the shape is computed, and the size of the axis is no constant in it.
        """
        shape = constant(node.inputs[1])
        if shape is None:
            return self._computed_shape(node, axis_slice)
        axis = axis_slice.axis - (rank_of(node.outputs[0]) - len(shape))
        if axis < 0 or shape[axis] < 1:  # 0 and -1 follow from what is there
            old = node.inputs[1]
            assert old is not None
            return old
        numbers = shape.copy()
        numbers[axis] = len(axis_slice.kept)
        return self._numbers(numbers)

    def new_nodes(self) -> list[ir.Node]:
        """The nodes that were made."""
        return list(self._nodes.values())

    def slices_of(self, value: ir.Value) -> list[tuple[AxisSlice, ir.Value]]:
        """The slices that were made of a value."""
        return [(key, new) for (old, key), new in self._made.items() if old is value]

    def commit(self) -> None:
        """Put everything into the Graph: new nodes, the weights that they read, smaller inputs."""
        for (old, _), new in self._nodes.items():
            for key in (MODULE_KEY, SOURCE_KEY):
                if key in old.metadata_props:
                    new.metadata_props[key] = old.metadata_props[key]
            old.prepend(new)
        for value in self._weights:
            if value.uses():
                self.graph.graph.register_initializer(value)
        for value, axis_slice in self.inputs.items():
            value.shape = sliced_shape(value, axis_slice)
            value.meta[KEPT] = axis_slice

    def discard(self) -> None:
        """Drop everything that was made."""
        for node in self._nodes.values():
            node.resize_inputs(0)

    # ----------------------------------------------------------------------------------------------

    def _sliced(self, value: ir.Value, axis_slice: AxisSlice) -> ir.Value:
        if ir.convenience.get_const_tensor(value) is not None:
            return self.sliced_weight(value, axis_slice)
        node = value.producer()
        if node is None:
            return self._sliced_input(value, axis_slice)
        if not standard(node, node.op_type):
            raise Miss(f"heads cannot be followed through {node.domain}::{node.op_type}", at=node)
        if (node, axis_slice) in self._nodes:
            return self._nodes[node, axis_slice].outputs[value.index() or 0]
        rule = rule_for(node.op_type)
        if rule is None:
            raise Miss(f"heads cannot be followed through {node.op_type}", at=node)
        found = rule(node, value, axis_slice)
        if isinstance(found, FirstInput):
            source = node.inputs[0]
            assert source is not None
            return self.sliced(source, found.axis_slice)
        return self._sliced_node(node, axis_slice, found).outputs[value.index() or 0]

    def _sliced_input(self, value: ir.Value, axis_slice: AxisSlice) -> ir.Value:
        if not value.is_graph_input():
            raise Miss("heads are of a value from outside of the subgraph")
        if not self.boundary:
            raise Miss(f"input {value.name!r} of the program has all of the heads")
        if self.inputs.setdefault(value, axis_slice) != axis_slice:
            raise Miss(f"two attentions keep different heads of input {value.name!r}")
        return value

    def _sliced_node(self, node: ir.Node, axis_slice: AxisSlice, found: SameNode) -> ir.Node:
        """The node over the inputs that its rule found, each output sliced."""
        inputs = list(node.inputs)
        for position, part in found.inputs.items():
            source = inputs[position]
            assert source is not None
            inputs[position] = (
                self.shape_of(node, axis_slice)
                if isinstance(part, Computed)
                else self.sliced(source, part)
            )
        read = [value for i, value in enumerate(inputs) if i not in found.dropped]
        attributes = {**node.attributes, **found.attributes}.values()
        new = ir.Node(
            node.domain, node.op_type, read, list(attributes), num_outputs=len(node.outputs)
        )
        for old, output in zip(node.outputs, new.outputs, strict=True):
            output.type = old.type
            if old.shape is not None:
                output.shape = sliced_shape(old, axis_slice)
        self._nodes[node, axis_slice] = new
        if found.is_product:
            self.projections.add(node)
        return new

    def _computed_shape(self, node: ir.Node, axis_slice: AxisSlice) -> ir.Value:
        """A shape that a Concat puts together, with another number for one axis."""
        whole = made_by(node.inputs[1], "Concat")
        length = axis_size(node.inputs[1], 0)
        place = axis_slice.axis - (rank_of(node.outputs[0]) - (length or 0))
        if whole is None or length is None or place < 0:
            raise Miss(f"the shape of a {node.op_type} is not a constant", at=node)
        if (whole, axis_slice) in self._nodes:
            return self._nodes[whole, axis_slice].outputs[0]
        parts, start = list(whole.inputs), 0
        for position, part in enumerate(whole.inputs):
            size = axis_size(part, 0)
            numbers = constant(part)
            if size is None:
                break
            if start <= place < start + size and numbers is not None:
                changed = numbers.copy()
                if changed[place - start] > 0:
                    changed[place - start] = len(axis_slice.kept)
                parts[position] = self._numbers(changed)
                new = ir.Node("", "Concat", parts, list(whole.attributes.values()))
                new.outputs[0].type = whole.outputs[0].type
                new.outputs[0].shape = whole.outputs[0].shape
                self._nodes[whole, axis_slice] = new
                return new.outputs[0]
            start += size
        raise Miss(f"the shape of a {node.op_type} has no number of heads", at=node)

    def _numbers(self, numbers: np.ndarray) -> ir.Value:
        """A small constant, that of the Graph if it has it."""
        tensor = ir.tensor(numbers)
        name = f"shape_{'_'.join(map(str, numbers.tolist()))}".replace("-", "m")
        for known in (*self.graph.graph.initializers.values(), *self._weights):
            if known.name == name and _holds(known, numbers):
                return known
        name = _free_name(name, self.graph, self._weights)
        value = ir.Value(
            name=name,
            shape=ir.Shape(numbers.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._weights.append(value)
        return value


def _holds(value: ir.Value, numbers: np.ndarray) -> bool:
    array = constant(value)
    return array is not None and np.array_equal(array, numbers)


def _free_name(name: str, graph: Graph, others: list[ir.Value]) -> str:
    taken = {value.name for value in others} | set(graph.graph.initializers)
    number = 0
    fresh = name
    while fresh in taken:
        number += 1
        fresh = f"{name}_{number}"
    return fresh
