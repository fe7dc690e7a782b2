"""Selects positions before they are computed, not after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from omnigraph.graph import Graph
from omnigraph.passes.analysis.pruning.row_selection import Selection, rows_of_inputs, selection_of
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, input_at, nodes_of, rank, replace_output
from omnigraph.passes.site_pass import Miss, SitePass


@dataclass(frozen=True)
class HoistSelections(SitePass):
    """Select rows before they are computed, where nothing needs the other rows.

    Before, with hidden [B, T, C]::

        logits = MatMul(LayerNormalization(hidden), weight)
        y      = Slice(logits, T - 1, T, axis=1)

    After::

        y      = MatMul(LayerNormalization(Slice(hidden, T - 1, T, axis=1)), weight)

    A Slice, Gather or GatherND of one axis moves up through elementwise ops, linear layers, norms,
    softmaxes, transposes and reshapes that keep the axis, and the queries of an Attention, until
    something else needs the other rows. It moves up both sides of a residual, so the whole
    feed-forward part of a last layer is computed for the selected rows alone. Exact: each row is
    computed from the same numbers.

    Needs: shapes. Leaves alone: selections along the last axis, which save no computation; rows
    that another node or an output needs too.
    """

    def sites(self, graph: Graph) -> Iterable[ir.Node]:
        """Selections of fewer rows of a computed float value, not along its last axis."""
        for node in nodes_of(graph, "Slice", "Gather", "GatherND"):
            data = node.inputs[0]
            selection = selection_of(node)
            if selection is None or data is None or data.dtype is None:
                continue
            axes = rank(data)
            if not data.dtype.is_floating_point() or axes is None or selection.axis >= axes - 1:
                continue
            if data.producer() is not None and _fewer(node, data, selection):
                yield node

    def rewrite(self, graph: Graph, node: ir.Node) -> str:
        """Move a selection up as far as it goes."""
        selection = selection_of(node)
        assert selection is not None
        passed: list[str] = []
        frontier = [node]
        first: Miss | None = None
        while frontier:
            stuck = []
            moved = len(passed)
            for site in frontier:
                if site.graph is None:
                    continue
                try:
                    stuck += _move(site, passed)
                except Miss as miss:
                    first = first or miss
                    stuck.append(site)
            frontier = list(dict.fromkeys(stuck))
            if len(passed) == moved:
                break
        if not passed:
            assert first is not None
            raise first
        graph.graph.sort()
        return f"{selection.op_type} before {len(passed)} nodes, the first {passed[-1]}"


def _fewer(node: ir.Node, data: ir.Value, selection: Selection) -> bool:
    """Whether a selection is known to keep fewer rows than there are."""
    if selection.drops_axis:
        return axis_size(data, selection.axis) != 1
    kept, there = axis_size(node.outputs[0], selection.axis), axis_size(data, selection.axis)
    return kept is not None and (there is None or kept < there)


def _move(site: ir.Node, passed: list[str]) -> list[ir.Node]:
    """Move one selection before the node that makes its data, and return the new selections."""
    selection, data = selection_of(site), site.inputs[0]
    assert selection is not None and data is not None
    producer = data.producer()
    if producer is None:
        raise Miss("what it selects from is not computed")
    twins = _all_uses_select(data, selection, producer)
    rows = rows_of_inputs(producer, selection)
    before = Inserter(site)
    inputs, made = list(producer.inputs), []
    for index, axis in rows.items():
        value = inputs[index]
        assert value is not None
        chosen = _selected(value, selection.along(axis), site, before)
        inputs[index] = chosen
        if (new := chosen.producer()) is not None:
            made.append(new)
    result = site.outputs[0]
    attributes = {name: a.value for name, a in producer.attributes.items()}
    kept = before.node(producer.op_type, *inputs, **attributes)
    kept.name, output = producer.name, kept.outputs[0]
    kept.metadata_props.update(producer.metadata_props)
    output.type = data.type
    if selection.drops_axis:
        axes = before.integers(selection.axis)
        output = before.op("Squeeze", output, axes)
    else:
        output.shape = result.shape
    for twin in twins:
        replace_output(twin.outputs[0], output)
        assert twin.graph is not None
        twin.graph.remove(twin, safe=True)
    assert producer.graph is not None
    producer.graph.remove(producer, safe=True)
    passed.append(producer.op_type)
    return made


def _all_uses_select(data: ir.Value, selection: Selection, producer: ir.Node) -> list[ir.Node]:
    """The nodes that read a value, each of which selects the same rows.

    Raises:
        Miss: something needs other rows.
    """
    if data.is_graph_output() or any(v.uses() or v.is_graph_output() for v in producer.outputs[1:]):
        raise Miss("an output of the program needs all rows", producer)
    twins = []
    for user, _ in data.uses():
        if selection_of(user) != selection:
            raise Miss(f"all rows are needed by {user.op_type} {user.name!r}", producer)
        if user.outputs[0].is_graph_output() and len(list(data.uses())) > 1:
            raise Miss("the rows are an output of the program, and are used again", producer)
        twins.append(user)
    return twins


def _selected(value: ir.Value, selection: Selection, site: ir.Node, before: Inserter) -> ir.Value:
    """The selected rows of a value, with the axis kept; an equal selection is used again."""
    old = selection_of(site)
    assert old is not None
    for user, _ in value.uses():
        if selection_of(user) == selection and input_at(user, 0) is value:
            return user.outputs[0]
    chosen = selection.node(value, site, before).outputs[0]
    size = 1 if old.drops_axis else axis_size(site.outputs[0], old.axis)
    if value.shape is not None:
        dims = list(value.shape)
        dims[selection.axis] = ir.SymbolicDim(None) if size is None else size
        chosen.shape, chosen.type = ir.Shape(dims), value.type
    return chosen
