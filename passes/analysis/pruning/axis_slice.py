"""A value without some elements of one axis, made by leaving them out of the weights behind it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph
from omnigraph.passes.analysis.pruning.axis_map import Cut, rank_of, shorter, size_of
from omnigraph.passes.analysis.pruning.axis_slice_rules import rule_for
from omnigraph.passes.matching import axis_size, constant, made_by, standard
from omnigraph.passes.site_pass import Miss

#: In ``meta`` of an input or an output of the Graph: the `Cut` that it was given.
KEPT = "omnigraph.kept"


class Cutter:
    """Makes cut values: plans them first, so that a `Miss` leaves the Graph as it was.

    The new nodes stand beside the old ones until ``commit``; ``discard`` takes them away. An input
    of the Graph that is cut is listed in ``inputs``, and gets its smaller shape by ``commit``.

    Args:
        graph: what the values are of.
        boundary: whether inputs of the Graph may be cut.
    """

    def __init__(self, graph: Graph, *, boundary: bool) -> None:
        self.graph, self.boundary = graph, boundary
        self.inputs: dict[ir.Value, Cut] = {}
        #: Products (of a projection, mostly) that were made anew: the old ones.
        self.projections: set[ir.Node] = set()
        self._made: dict[tuple[ir.Value, Cut], ir.Value] = {}
        self._nodes: dict[tuple[ir.Node, Cut], ir.Node] = {}
        self._weights: list[ir.Value] = []

    def cut(self, value: ir.Value, cut: Cut) -> ir.Value:
        """The value with the elements that a cut keeps.

        Raises:
            Miss: what makes the value cannot be followed.
        """
        size = size_of(value, cut.axis)
        if cut.kept == tuple(range(size)):
            return value
        key = (value, cut)
        if key not in self._made:
            self._made[key] = self._cut(value, cut)
        return self._made[key]

    def weight(self, value: ir.Value, cut: Cut, scale: np.ndarray | None = None) -> ir.Value:
        """A constant with the elements that a cut keeps, computed when it is written.

        Args:
            scale: what each kept element is multiplied by, [len(kept)].
        """
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        kept = np.array(cut.kept, np.int64)
        shape = [int(size) for size in tensor.shape.numpy()]
        shape[cut.axis] = len(kept)
        factor = None
        if scale is not None:
            factor = scale.reshape([-1 if a == cut.axis else 1 for a in range(len(shape))])
        name = _free_name(f"{value.name or 'constant'}_cut", self.graph, self._weights)

        def compute() -> ir.TensorProtocol:
            array = tensor.numpy().take(kept, axis=cut.axis)
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

    def commit(self) -> None:
        """Put what was made into the Graph: nodes, the weights that they read, smaller inputs."""
        for (old, _), new in self._nodes.items():
            for key in (MODULE_KEY, SOURCE_KEY):
                if key in old.metadata_props:
                    new.metadata_props[key] = old.metadata_props[key]
            old.prepend(new)
        for value in self._weights:
            if value.uses():
                self.graph.graph.register_initializer(value)
        for value, cut in self.inputs.items():
            value.shape = shorter(value, cut)
            value.meta[KEPT] = cut

    def pick(self, value: ir.Value, cut: Cut, before: ir.Node) -> ir.Value:
        """The kept elements of a value that is computed whole, picked before a node."""
        index = np.array(cut.kept, np.int64)
        name = _free_name("kept_heads", self.graph, self._weights)
        kept = ir.Value(
            name=name,
            shape=ir.Shape(index.shape),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(index, name=name),
        )
        self._weights.append(kept)
        node = ir.Node("", "Gather", [value, kept], [ir.AttrInt64("axis", cut.axis)])
        node.outputs[0].type, node.outputs[0].shape = value.type, shorter(value, cut)
        self._nodes[before, cut] = node
        return node.outputs[0]

    def cut_or_pick(self, value: ir.Value, cut: Cut, before: ir.Node) -> ir.Value:
        """The kept elements, by `cut`; where what makes the value cannot be followed, by `pick`."""
        kept = dict(self._made), dict(self._nodes), list(self._weights)
        projections, inputs = set(self.projections), dict(self.inputs)
        try:
            return self.cut(value, cut)
        except Miss:
            for key, node in self._nodes.items():
                if key not in kept[1]:
                    node.resize_inputs(0)
            self._made, self._nodes, self._weights = kept
            self.projections, self.inputs = projections, inputs
            return self.pick(value, cut, before)

    def new_nodes(self) -> list[ir.Node]:
        """The nodes that were made."""
        return list(self._nodes.values())

    def made(self, value: ir.Value) -> list[tuple[Cut, ir.Value]]:
        """The cuts that a value was given, and what was made for each."""
        return [(cut, new) for (old, cut), new in self._made.items() if old is value]

    def discard(self) -> None:
        """Take away what was made."""
        for node in self._nodes.values():
            node.resize_inputs(0)

    # What rules call ------------------------------------------------------------------------------

    def _cut(self, value: ir.Value, cut: Cut) -> ir.Value:
        if ir.convenience.get_const_tensor(value) is not None:
            return self.weight(value, cut)
        node = value.producer()
        if node is None:
            return self._cut_input(value, cut)
        if not standard(node, node.op_type):
            raise Miss(f"heads cannot be followed through {node.domain}::{node.op_type}", at=node)
        if (node, cut) in self._nodes:
            return self._nodes[node, cut].outputs[value.index() or 0]
        rule = rule_for(node.op_type)
        if rule is None:
            raise Miss(f"heads cannot be followed through {node.op_type}", at=node)
        made = rule(self, node, value, cut)
        if isinstance(made, ir.Value):
            return made
        return made.outputs[value.index() or 0]

    def _cut_input(self, value: ir.Value, cut: Cut) -> ir.Value:
        if not value.is_graph_input():
            raise Miss("heads are of a value from outside of the subgraph")
        if not self.boundary:
            raise Miss(f"input {value.name!r} of the program has all of the heads")
        if self.inputs.setdefault(value, cut) != cut:
            raise Miss(f"two attentions keep different heads of input {value.name!r}")
        return value

    def remake(
        self,
        node: ir.Node,
        cut: Cut,
        inputs: list[ir.Value | None],
        attributes: dict[str, ir.Attr] | None = None,
    ) -> ir.Node:
        """The node over other inputs, each output shorter at the cut's axis."""
        given = node.attributes.values() if attributes is None else attributes.values()
        new = ir.Node(node.domain, node.op_type, inputs, list(given), num_outputs=len(node.outputs))
        for old, output in zip(node.outputs, new.outputs, strict=True):
            output.type = old.type
            if old.shape is not None:
                output.shape = shorter(old, cut)
        self._nodes[node, cut] = new
        return new

    def first(self, node: ir.Node, cut: Cut) -> ir.Value:
        """The first input of a node, cut."""
        source = node.inputs[0]
        assert source is not None
        return self.cut(source, cut)

    def aligned(self, value: ir.Value | None, cut: Cut, rank: int) -> ir.Value | None:
        """An input that is broadcast to ``rank`` axes, cut where it has that axis."""
        if value is None:
            return None
        axis = cut.axis - (rank - rank_of(value))
        if axis < 0 or size_of(value, axis) == 1:
            return value
        return self.cut(value, Cut(axis, cut.kept))

    def shape_of(self, node: ir.Node, cut: Cut) -> ir.Value:
        """The shape input of a Reshape or an Expand whose output is cut."""
        shape = constant(node.inputs[1])
        if shape is None:
            return self._computed_shape(node, cut)
        axis = cut.axis - (rank_of(node.outputs[0]) - len(shape))
        if axis < 0 or shape[axis] < 1:  # 0 and -1 follow from what is there
            old = node.inputs[1]
            assert old is not None
            return old
        numbers = shape.copy()
        numbers[axis] = len(cut.kept)
        return self._numbers(numbers)

    def _computed_shape(self, node: ir.Node, cut: Cut) -> ir.Value:
        """A shape that is put together, with another number for one axis."""
        whole = made_by(node.inputs[1], "Concat")
        length = axis_size(node.inputs[1], 0)
        place = cut.axis - (rank_of(node.outputs[0]) - (length or 0))
        if whole is None or length is None or place < 0:
            raise Miss(f"the shape of a {node.op_type} is not a constant", at=node)
        if (whole, cut) in self._nodes:
            return self._nodes[whole, cut].outputs[0]
        parts, start = list(whole.inputs), 0
        for position, part in enumerate(whole.inputs):
            size = axis_size(part, 0)
            numbers = constant(part)
            if size is None:
                break
            if start <= place < start + size and numbers is not None:
                changed = numbers.copy()
                if changed[place - start] > 0:
                    changed[place - start] = len(cut.kept)
                parts[position] = self._numbers(changed)
                new = ir.Node("", "Concat", parts, list(whole.attributes.values()))
                new.outputs[0].type = whole.outputs[0].type
                new.outputs[0].shape = whole.outputs[0].shape
                self._nodes[whole, cut] = new
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
