"""Chooses the precision of each layer within a bound on the loss, and only where it is faster.

A unit is a layer, or an embedding with the logits that share its table. Each unit is quantized by
itself, and its loss is measured on the evaluation set. Units are then sorted by the ratio of saving
to loss, the best first, and a binary search finds how many of them fit into the bound together,
measured on the whole set and on every program. The upper end of the loss's confidence interval
counts, not the loss that this set happens to give.

All this is measured on the quantized Graphs in onnxruntime. The choice is then measured once more
on the target itself, where that runs here: its kernels may round what the Graph does not say. If
the loss is beyond the bound there, the last layers step back, until it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers, tables
from omnigraph.precision import FLOAT, bits_of
from omnigraph.progress import Progress, silent
from omnigraph.quantization.judge import Judge, Losses, check_enough
from omnigraph.quantization.region_timing import RegionTimes

#: A measured loss of zero or less counts as this: nothing is free.
_LEAST_LOSS = 1e-6


@dataclass(frozen=True)
class Unit:
    """Layers that are quantized together.

    Args:
        layers: module paths.
        weights: how many weights the layers have.
        table: whether they are rows of an embedding, which have types of their own.
    """

    layers: tuple[str, ...]
    weights: int
    table: bool = False


@dataclass(frozen=True)
class Choice:
    """The choice for one unit.

    Args:
        layers: module paths.
        precision: "float" where it is not quantized.
        loss: of this unit alone in that precision; for "float", in the first candidate.
        milliseconds: of its region in float, and in that precision, where they were measured.
        reason: for a person.
    """

    layers: tuple[str, ...]
    precision: str
    loss: float | None
    milliseconds: tuple[float, float] | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready fields; what was not measured is left out."""
        fields: dict[str, Any] = {
            "layers": list(self.layers),
            "choice": self.precision,
            "reason": self.reason,
        }
        if self.loss is not None:
            fields["loss"] = self.loss
        if self.milliseconds is not None:
            fields["milliseconds"] = dict(
                zip(("float", "quantized"), self.milliseconds, strict=True)
            )
        return fields


@dataclass(frozen=True)
class Plan:
    """The choice for every unit, and their loss together.

    Args:
        choices: of every unit.
        losses: on the evaluation set; None where none was measured.
        stepped_back: layers that fitted the bound in onnxruntime, but not on the target.
    """

    choices: tuple[Choice, ...]
    losses: Losses | None
    stepped_back: tuple[str, ...] = ()

    @property
    def by_layer(self) -> dict[str, str]:
        """The precision of every layer."""
        return {layer: choice.precision for choice in self.choices for layer in choice.layers}


def units_of(graphs: Sequence[Graph], is_kept: Callable[[str], bool]) -> list[Unit]:
    """The units of the float Graphs of a model's programs, without those kept in float.

    Units of two programs that share a layer are one.
    """
    units: list[Unit] = []
    for unit in (unit for graph in graphs for unit in _units(graph)):
        same = [known for known in units if set(known.layers).intersection(unit.layers)]
        place = units.index(same[0]) if same else len(units)
        layers = dict.fromkeys(layer for known in (*same, unit) for layer in known.layers)
        units = [known for known in units if known not in same]
        joined = (*same, unit)
        weights, table = max(u.weights for u in joined), any(u.table for u in joined)
        units.insert(place, Unit(tuple(layers), weights, table))
    return [unit for unit in units if not any(is_kept(layer) for layer in unit.layers)]


def _units(graph: Graph) -> list[Unit]:
    """The units of one Graph."""
    lookups = {lookup.weight: lookup.layer for lookup in tables(graph)}
    units: list[Unit] = []
    taken: set[str] = set()
    for linear in linear_layers(graph):
        mate = lookups.pop(linear.weight, None)
        layers = (linear.layer,) if mate is None else (mate, linear.layer)
        if not taken.intersection(layers):
            units.append(Unit(layers, linear.contraction * linear.channels, mate is not None))
            taken.update(layers)
    for weight, layer in lookups.items():
        if layer not in taken and weight.const_value is not None:
            units.append(Unit((layer,), weight.const_value.size, table=True))
    return units


@dataclass(frozen=True)
class _Step:
    """One unit's change to a coarser precision, with its saving and its loss."""

    place: int
    precision: str
    saved: float
    loss: float


class BudgetSearch:
    """Chooses the precision of each unit.

    Args:
        units: what may be quantized.
        candidates: what each may become, the finest first.
        judge: measures losses.
        times: of each unit's region, by place in ``units``; empty where none was measured.
        progress: called with what is being done.
        table_bits: of one weight of an embedding, by candidate, where they are not a layer's.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        candidates: Sequence[str],
        judge: Judge,
        times: Mapping[int, RegionTimes],
        progress: Progress = silent,
        table_bits: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self._units, self._judge, self._table_bits = units, judge, table_bits
        self._times, self._progress = times, progress
        self._rejected: dict[int, list[str]] = {}
        self._open = {
            place: [c for c in candidates if self._passes_gate(place, c)]
            for place in range(len(units))
        }
        self._losses: dict[tuple[int, str], float] = {}

    def _passes_gate(self, place: int, precision: str) -> bool:
        times = self._times.get(place)
        if times is None or times.pays(precision):
            return True
        slow, fast = times.milliseconds[precision], times.milliseconds[FLOAT]
        slower = f"{precision} takes {slow:.3f} ms, float {fast:.3f} ms"
        self._rejected.setdefault(place, []).append(slower)
        return False

    def run(self, most: float | None) -> Plan:
        """Choose with a loss of ``most`` at most; None takes every step that saves something.

        Raises:
            UsageError: there is a bound, and too few samples to keep it on.
        """
        if most is None:
            steps = self._steps()
            return self._plan(steps, len(steps), len(steps), None)
        self._check_samples(most)
        self._measure()
        steps = self._steps()
        fits, losses = self._most_that_fit(steps, len(steps), most, self._judge.on_graphs)
        accepted = fits
        if self._judge.runs_on_target:
            self._progress("measure the choice on the target")
            accepted, losses = self._most_that_fit(steps, fits, most, self._judge.on_target)
        return self._plan(steps, accepted, fits, losses)

    def _check_samples(self, most: float) -> None:
        for program in self._judge.counted:
            check_enough(program, most)
        if not self._judge.counted:
            raise UsageError(
                "A bound on the loss needs data to measure it on",
                expected="--evaluation DATA, of the same forms as --calibration",
                hint="use other data than for calibration",
            )

    def _most_that_fit(
        self,
        steps: Sequence[_Step],
        limit: int,
        most: float,
        measure: Callable[[Mapping[str, str]], Losses],
    ) -> tuple[int, Losses]:
        """How many of the first ``limit`` steps are within the bound together, and their losses."""
        fits, losses = 0, None
        tried = limit  # try all of them first: often they are within the bound
        while fits < limit:
            found = measure(self._choices(self._after(steps, tried)))
            self._progress(f"{tried} of {len(steps)} steps: {found.program}, {found.worst}")
            if found.within(most):
                fits, losses = tried, found
            else:
                limit = tried - 1
            tried = (fits + limit + 1) // 2
        return fits, losses or measure(self._choices(self._after(steps, fits)))

    def _measure(self) -> None:
        """The loss of each unit alone, in each precision."""
        for place, precisions in self._open.items():
            layers = self._units[place].layers
            for precision in precisions:
                found = self._judge.alone(layers, self._choices({place: precision}))
                if found is not None:
                    self._progress(f"loss of {layers[-1]} in {precision}: {found}")
                    self._losses[place, precision] = found.relative

    def _steps(self) -> list[_Step]:
        """Every step that saves something, in the order of saving for loss, the best first."""
        steps = []
        for place, precisions in self._open.items():
            cost, lost = self._cost(place, FLOAT), 0.0
            for precision in precisions:
                next_cost = self._cost(place, precision)
                next_lost = max(self._losses.get((place, precision), 0.0), _LEAST_LOSS)
                if next_cost < cost:
                    loss = max(next_lost - lost, _LEAST_LOSS)
                    steps.append(_Step(place, precision, cost - next_cost, loss))
                    cost, lost = next_cost, max(lost, next_lost)
        order = sorted(steps, key=lambda step: step.loss / step.saved)
        # A unit takes its step to a finer precision before the step to a coarser one.
        return _in_turn(order, self._open)

    def _cost(self, place: int, precision: str) -> float:
        """The cost of a unit: milliseconds where they were measured, else bits of its weights."""
        times = self._times.get(place)
        if times is not None:
            return times.milliseconds[precision]
        unit, bits = self._units[place], bits_of(precision)
        return unit.weights * (self._table_bits.get(precision, bits) if unit.table else bits)

    def _after(self, steps: Sequence[_Step], count: int) -> dict[int, str]:
        return {step.place: step.precision for step in steps[:count]}

    def _choices(self, chosen: Mapping[int, str]) -> dict[str, str]:
        return {
            layer: chosen.get(place, FLOAT)
            for place, unit in enumerate(self._units)
            for layer in unit.layers
        }

    def _plan(
        self, steps: Sequence[_Step], accepted: int, fits: int, losses: Losses | None
    ) -> Plan:
        """The plan of the first ``accepted`` steps; ``fits`` of them fitted off the target."""
        chosen = self._after(steps, accepted)
        beyond = {(step.place, step.precision) for step in steps[fits:]}
        back = {step.place for step in steps[accepted:fits]}
        choices = []
        for place, unit in enumerate(self._units):
            precision = chosen.get(place, FLOAT)
            shown = precision if precision != FLOAT else next(iter(self._open[place]), None)
            choices.append(
                Choice(
                    unit.layers,
                    precision,
                    self._losses.get((place, shown)) if shown is not None else None,
                    self._milliseconds(place, shown),
                    "beyond the budget on the target, within it in onnxruntime"
                    if place in back
                    else self._reason(place, precision, beyond),
                )
            )
        layers = [layer for place in sorted(back) for layer in self._units[place].layers]
        return Plan(tuple(choices), losses, tuple(layers))

    def _milliseconds(self, place: int, precision: str | None) -> tuple[float, float] | None:
        """The times of a unit's region, in float and quantized; the fastest where all are slow."""
        times = self._times.get(place)
        if times is None:
            return None
        quantized = {k: v for k, v in times.milliseconds.items() if k != FLOAT}
        if precision is not None:
            return times.milliseconds[FLOAT], times.milliseconds[precision]
        return times.milliseconds[FLOAT], min(quantized.values())

    def _reason(self, place: int, precision: str, beyond: Collection[tuple[int, str]]) -> str:
        if precision == FLOAT and not self._open[place]:
            return "rejected: " + "; ".join(self._rejected.get(place, ["nothing to choose"]))
        if precision == FLOAT:
            spent = any((place, finer) in beyond for finer in self._open[place])
            return "the budget is spent" if spent else "nothing is saved"
        coarser = self._open[place][self._open[place].index(precision) + 1 :]
        if place in self._rejected:
            return "kept; " + "; ".join(self._rejected[place])
        if coarser:
            spent = (place, coarser[0]) in beyond
            return f"kept; {coarser[0]}: " + ("the budget is spent" if spent else "saves nothing")
        return "kept"


def _in_turn(steps: Sequence[_Step], precisions: Mapping[int, Sequence[str]]) -> list[_Step]:
    """Steps in order, but each after its unit's steps to finer precisions."""
    waiting, done, ordered = list(steps), set(), []
    known = {(step.place, step.precision) for step in steps}
    while waiting:
        for step in waiting:
            before = precisions[step.place][: precisions[step.place].index(step.precision)]
            if all((step.place, p) in done or (step.place, p) not in known for p in before):
                ordered.append(step)
                done.add((step.place, step.precision))
                waiting.remove(step)
                break
    return ordered
