"""Removes heads from one attention: plans every change first, then applies them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.pruning.axis_slice import AxisSlice, sliced_shape
from omnigraph.passes.analysis.pruning.head_layout import HeadLayout
from omnigraph.passes.analysis.pruning.output_projection import OutputProjection
from omnigraph.passes.analysis.pruning.slicer import KEPT, AxisSlicer
from omnigraph.passes.matching import axis_size, rank, standard
from omnigraph.passes.site_pass import Miss


@dataclass
class HeadRemoval:
    """The changes of a Graph that leave an attention some of its heads only.

    Args:
        query: the query heads that stay.
        key: the key and value heads that stay.
    """

    graph: Graph
    attention: HeadLayout
    path: OutputProjection
    query: tuple[int, ...]
    key: tuple[int, ...]
    slicer: AxisSlicer
    #: The new inputs of the attention, of gates and of Reshapes: (node, position, new value).
    inputs: list[tuple[ir.Node, int, ir.Value | None]] = field(default_factory=list)
    #: Outputs of the program that lose heads: old value, new value, slice.
    outputs: list[tuple[ir.Value, ir.Value, AxisSlice]] = field(default_factory=list)

    def make(self) -> None:
        """Plan every change.

        Raises:
            Miss: the heads cannot go, or something else needs them computed.
        """
        node = self.attention.node
        made = self.attention.sliced_inputs(self.slicer, self.query, self.key)
        self.inputs += [(node, position, value) for position, value in enumerate(made)]
        for gate_node, gate in self.path.gates:
            self._make_gate(gate_node, gate)
        for value, axis, owner in self.path.values[1:]:
            producer = value.producer()
            if producer is not None and standard(producer, "Reshape"):
                shape = self.slicer.shape_of(producer, self._slice(axis, owner))
                self.inputs.append((producer, 1, shape))
        self._make_outputs()
        self._check_nothing_stays()

    def apply(self, silenced: Iterable[int]) -> None:
        """Change the Graph.

        Args:
            silenced: heads that stay, and whose rows of the projection become 0.
        """
        path = self.path
        kept = self._slice(path.axis, path.owner).kept
        factor = path.factor * ~np.isin(path.owner, list(silenced))
        scaled = not (factor == 1).all()
        if scaled or len(kept) < len(path.owner):
            scale = factor[list(kept)] if scaled else None
            weight = self.slicer.sliced_weight(path.weight, AxisSlice(path.axis, kept), scale)
            self.inputs.append((path.node, 1, weight))
        before = [node.inputs[position] for node, position, _ in self.inputs]
        for node, position, value in self.inputs:
            node.replace_input_with(position, value)
        for value, axis, owner in path.values:
            value.shape = sliced_shape(value, self._slice(axis, owner))
        for node in path.constants:
            gated = next(v for v in node.inputs if v in [value for value, _, _ in path.values])
            before += node.inputs
            ir.convenience.replace_all_uses_with(node.outputs[0], gated)
        self.slicer.commit()
        for old, new, axis_slice in self.outputs:
            _replace_output(old, new, axis_slice)
        before += [old for old, _, _ in self.outputs]
        before += [node.outputs[0] for node in path.constants]
        self.attention.set_kept(self.query, self.key)
        remove_dead(self.graph, [value for value in before if value is not None])

    # ----------------------------------------------------------------------------------------------

    def _slice(self, axis: int, owner: np.ndarray) -> AxisSlice:
        return AxisSlice(axis, tuple(np.flatnonzero(np.isin(owner, self.query)).tolist()))

    def _make_gate(self, node: ir.Node, gate: ir.Value) -> None:
        axis, owner = next((a, o) for v, a, o in self.path.values if v is node.outputs[0])
        place = axis - ((rank(node.outputs[0]) or 0) - (rank(gate) or 0))
        if rank(gate) is None or (place >= 0 and axis_size(gate, place) is None):
            raise Miss("a gate of its heads has no known shape", at=node)
        if place < 0 or axis_size(gate, place) == 1:
            return
        axis_slice = self._slice(place, owner)
        if len(list(gate.uses())) > 1 or gate.is_graph_output():
            new = self.slicer.gathered(gate, axis_slice, node)
        else:
            new = self.slicer.sliced(gate, axis_slice)
        self.inputs.append((node, 0 if node.inputs[0] is gate else 1, new))

    def _make_outputs(self) -> None:
        node = self.attention.node
        for position, output in enumerate(node.outputs[1:], 1):
            if not output.uses() and not output.is_graph_output():
                continue
            if output.uses() or position > 2 or not self.slicer.boundary:
                raise Miss(f"its heads are in {output.name!r}, which is read elsewhere")
            kept = self.key
            self.outputs.append((output, output, AxisSlice(1, kept)))
        for output in self.graph.graph.outputs:
            for axis_slice, new in self.slicer.slices_of(output):
                if not self.slicer.boundary:
                    raise Miss(f"its heads are in output {output.name!r} of the program")
                self.outputs.append((output, new, axis_slice))

    def _check_nothing_stays(self) -> None:
        """Refuse a removal after which the projections of the heads would still be computed."""
        replaced = {old: new for old, new, _ in self.outputs}
        new_inputs: dict[ir.Node, dict[int, ir.Value | None]] = {}
        for node, position, value in self.inputs:
            new_inputs.setdefault(node, {})[position] = value
        waiting = [replaced.get(value, value) for value in self.graph.graph.outputs]
        read: set[ir.Node] = set()
        while waiting:
            producer = waiting.pop().producer()
            if producer is None or producer in read:
                continue
            read.add(producer)
            given = new_inputs.get(producer, {})
            inputs = [given.get(i, value) for i, value in enumerate(producer.inputs)]
            waiting += [value for value in inputs if value is not None]
            for attribute in producer.attributes.values():
                if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    raise Miss("the program has branches or loops", at=producer)
        for old in self.slicer.projections:
            if old in read:
                raise Miss("its projection is read by something else too", at=old)
        remade = set(self.slicer.new_nodes())
        changed = {node for node, _, _ in self.inputs}
        for value, axis_slice in self.slicer.inputs.items():
            for user, _ in value.uses():
                if user in remade or user in changed or _reads_other_size(user, axis_slice.axis):
                    continue
                if user in read:
                    raise Miss(f"input {value.name!r} is read by something else too", at=user)


def slice_output(graph: Graph, output: ir.Value, axis_slice: AxisSlice) -> None:
    """Slice an output of a Graph, and the weights that it is computed from.

    Raises:
        Miss: the output cannot be sliced, or something inside of the Graph reads it too.
    """
    if output.uses():
        raise Miss(f"output {output.name!r} is read inside of the program too")
    slicer = AxisSlicer(graph, boundary=True)
    try:
        new = slicer.sliced(output, axis_slice)
    except Miss:
        slicer.discard()
        raise
    slicer.commit()
    _replace_output(output, new, axis_slice)
    remove_dead(graph, [output])


def _reads_other_size(node: ir.Node, axis: int) -> bool:
    """Whether a node is a Shape of other axes only."""
    if not standard(node, "Shape") or node.inputs[0] is None:
        return False
    size = rank(node.inputs[0]) or 0
    start, end = (
        node.attributes.get_int(name, last) for name, last in (("start", 0), ("end", size))
    )
    return axis not in range(size)[start:end]


def _replace_output(old: ir.Value, new: ir.Value, axis_slice: AxisSlice) -> None:
    if new is old:
        old.shape = sliced_shape(old, axis_slice)
    else:
        name = old.name
        old.name, new.name = f"{name}_whole", name
        graph = old.graph
        assert graph is not None
        for position, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[position] = new
    new.meta[KEPT] = axis_slice


def remove_dead(graph: Graph, values: list[ir.Value]) -> None:
    """Remove the nodes and weights that only these values are computed from."""
    while values:
        value = values.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is None:
            known = graph.graph.initializers.get(value.name or "")
            if known is value and not value.is_graph_input():
                graph.graph.initializers.pop(value.name or "")
            continue
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        values += [v for v in node.inputs if v is not None]
        graph.graph.remove(node, safe=True)
