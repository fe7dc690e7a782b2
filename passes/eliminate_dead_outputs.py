"""Removes outputs that are not needed, and all positions of an output but the last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from omnigraph.errors import UsageError
from omnigraph.graph import Graph, role_of
from omnigraph.passes.base import Pass
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.insertion import Inserter
from omnigraph.passes.matching import axis_size, rank, same_dim
from omnigraph.program import TensorSpec, mask_of

#: The end of a Slice that goes to the end of any axis.
_TO_THE_END = int(np.iinfo(np.int64).max)


@dataclass(frozen=True)
class EliminateDeadOutputs(Pass):
    """Keep the outputs of ``outputs``, and only the last position of those of ``last``.

    Before::

        logits [B, T, V], present [B, H, T, D]

    After, with ``outputs=("logits",), last=("logits",)``::

        logits [B, 1, V]        of the last token of each row

    The last token is where the program's mask of that length, an input [B, T] whose role is
    "mask", has its last one: so it is the same with padding on the left, on the right or without
    any; of a mask [B, P + T] with a past, the last T columns count. A row that is all padding gives
    its first position. A program without such a mask gives position T - 1.

    `HoistSelections` then keeps the other positions from being computed at all.

    Needs: shapes of the outputs named in ``last``, with the positions on axis 1. Leaves alone:
    everything, without options; an output of one position. Inputs stay, used or not.

    Args:
        outputs: the outputs to keep; empty is all.
        last: the outputs that keep only their last position.

    Raises:
        UsageError: an output of that name is not there, or has no axis of positions.
    """

    outputs: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def apply(self, graph: Graph) -> bool:
        """Change the outputs in place; whether anything changed."""
        there = {value.name or "": value for value in graph.graph.outputs}
        if missing := [name for name in (*self.outputs, *self.last) if name not in there]:
            raise UsageError(
                f"Graph {graph.graph.name!r} has no output {missing[0]!r}",
                expected=" or ".join(there),
                hint="`omnigraph inspect MODEL` lists the outputs of each program",
            )
        changed = False
        if self.outputs and (dead := [n for n in there if n not in self.outputs]):
            for name in dead:
                graph.graph.outputs.remove(there[name])
            EliminateDeadCode().apply(graph)
            changed = True
        for name in self.last:
            value = next((v for v in graph.graph.outputs if v.name == name), None)
            if value is not None and axis_size(value, 1) != 1:
                _select_last(graph, value)
                changed = True
        return changed


def _select_last(graph: Graph, value: ir.Value) -> None:
    """Replace an output [B, T, …] by its last position, under the same name."""
    if (rank(value) or 0) < 3:
        raise UsageError(
            f"Output {value.name!r} has no positions to choose the last of",
            expected="an output [batch, sequence, …]",
            found=str(value.shape),
            hint="leave it out of --last",
        )
    end = ir.node("Identity", [value])
    graph.graph.append(end)
    before = Inserter(end)
    by_name = {v.name or "": v for v in graph.graph.inputs}
    found = mask_of(_spec(graph, value), [_spec(graph, v) for v in graph.graph.inputs])
    if found is None:
        last = before.op(
            "Slice", value, before.integers(-1), before.integers(_TO_THE_END), before.integers(1)
        )
    else:
        mask, has_past = by_name[found.name], found.shape[1] != _spec(graph, value).shape[1]
        rows = before.op(
            "Unsqueeze", _last_tokens(graph, mask, has_past, value, before), before.integers(2)
        )
        last = before.op("GatherND", value, rows, batch_dims=1)
    assert value.shape is not None
    last.shape = ir.Shape([value.shape[0], 1, *list(value.shape)[2:]])
    last.type = value.type
    graph.graph.remove(end, safe=True)
    _return_instead(graph, value, last)


def _last_tokens(
    graph: Graph, mask: ir.Value, has_past: bool, value: ir.Value, before: Inserter
) -> ir.Value:
    """The position of the last token of each row, [B, 1]; 0 in a row that has none."""
    length = _length(graph, value, before)
    if has_past:
        start = before.op("Unsqueeze", before.op("Neg", length), before.integers(0))
        mask = before.op("Slice", mask, start, before.integers(_TO_THE_END), before.integers(1))
    seen = before.op("Cast", mask, to=ir.DataType.BOOL)
    positions = before.op("Range", before.integer(0), length, before.integer(1))
    places = before.op("Where", seen, positions, before.integer(0))
    return before.op("ReduceMax", places, before.integers(1), keepdims=1)


def _length(graph: Graph, value: ir.Value, before: Inserter) -> ir.Value:
    """The number of positions of an output, read from an input that has as many if there is one.

    The Shape of the output itself would need all of its positions.
    """
    assert value.shape is not None
    for given in graph.graph.inputs:
        if (
            rank(given) == 2
            and given.shape is not None
            and same_dim(given.shape[1], value.shape[1])
        ):
            return before.length(given, 1)
    return before.length(value, 1)


def _return_instead(graph: Graph, old: ir.Value, new: ir.Value) -> None:
    """Replace an output by a value that is computed from it, under the same name."""
    name, position = old.name, graph.graph.outputs.index(old)
    graph.graph.outputs[position] = new
    old.name, new.name = f"{name}_all", name


def _spec(graph: Graph, value: ir.Value) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
    return TensorSpec(value.name or "", "", dims, role=role_of(graph, value.name))
