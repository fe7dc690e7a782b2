"""Chooses the precision of each layer within a bound on the loss, and only where it is faster.

A unit is a layer, or an embedding with the logits that share its table. Each unit is quantized by
itself, and its loss is measured on the evaluation set. Units are then sorted by the ratio of saving
to loss, the best first, and a binary search finds how many of them fit into the bound together,
measured on the whole set. The upper end of the loss's confidence interval counts, not the loss that
this set happens to give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import linear_layers, tables
from omnigraph.precision import FLOAT, bits_of
from omnigraph.progress import Progress, silent
from omnigraph.quantization.evaluation import Loss, Run, Sample, loss_of
from omnigraph.quantization.region_timing import RegionTimes
from omnigraph.report import table

#: Samples for the loss of one unit; the loss of a choice is measured on all samples.
_SENSITIVITY_SAMPLES = 32
#: A measured loss of zero or less counts as this: nothing is free.
_LEAST_LOSS = 1e-6
#: Quantizes the program by choices for every layer, and gives what runs it.
Quantize = Callable[[Mapping[str, str]], Run]


@dataclass(frozen=True)
class Unit:
    """Layers that are quantized together.

    Args:
        layers: module paths.
        weights: how many weights the layers have.
    """

    layers: tuple[str, ...]
    weights: int


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
        loss: on the evaluation set; None where none was measured.
    """

    choices: tuple[Choice, ...]
    loss: Loss | None

    @property
    def by_layer(self) -> dict[str, str]:
        """The precision of every layer."""
        return {layer: choice.precision for choice in self.choices for layer in choice.layers}


def units_of(graph: Graph, is_kept: Callable[[str], bool]) -> list[Unit]:
    """The units of a float Graph, without those that are kept in float."""
    found = linear_layers(graph)
    lookups = {lookup.weight: lookup.layer for lookup in tables(graph)}
    units: list[Unit] = []
    taken: set[str] = set()
    for linear in found:
        mate = lookups.pop(linear.weight, None)
        layers = (linear.layer,) if mate is None else (mate, linear.layer)
        if not taken.intersection(layers):
            units.append(Unit(layers, linear.contraction * linear.channels))
            taken.update(layers)
    for weight, layer in lookups.items():
        if layer not in taken and weight.const_value is not None:
            units.append(Unit((layer,), weight.const_value.size))
    return [unit for unit in units if not any(is_kept(layer) for layer in unit.layers)]


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
        quantize: quantizes the program by choices.
        samples: the evaluation set; empty without a bound on the loss.
        times: of each unit's region, by place in ``units``; empty where none was measured.
        progress: called with what is being done.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        candidates: Sequence[str],
        quantize: Quantize,
        samples: Sequence[Sample],
        times: Mapping[int, RegionTimes],
        progress: Progress = silent,
    ) -> None:
        self._units, self._quantize, self._samples = units, quantize, samples
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
            UsageError: there is a bound, and no samples to measure a loss on.
        """
        if most is None:
            steps = self._steps()
            chosen = self._after(steps, len(steps))
            return self._plan(chosen, self._loss_of(chosen) if self._samples else None, False)
        if not self._samples:
            raise UsageError(
                "A bound on the loss needs data to measure it on",
                expected="--evaluation DATA, of the same forms as --calibration",
                hint="use other data than for calibration",
            )
        self._measure()
        steps = self._steps()
        fits, most_steps, loss = 0, len(steps), None
        tried = most_steps  # try all of them first: often they are within the bound
        while fits < most_steps:
            found = self._loss_of(self._after(steps, tried))
            self._progress(f"{tried} of {len(steps)} steps: {found}")
            if found.upper <= most:
                fits, loss = tried, found
            else:
                most_steps = tried - 1
            tried = (fits + most_steps + 1) // 2
        chosen = self._after(steps, fits)
        return self._plan(chosen, loss or self._loss_of(chosen), fits < len(steps))

    def _measure(self) -> None:
        """The loss of each unit alone, in each precision."""
        some = self._samples[:_SENSITIVITY_SAMPLES]
        for place, precisions in self._open.items():
            for precision in precisions:
                run = self._quantize(self._choices({place: precision}))
                found = loss_of(run, some)
                name = self._units[place].layers[-1]
                self._progress(f"loss of {name} in {precision}: {found}")
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
        return self._units[place].weights * bits_of(precision)

    def _after(self, steps: Sequence[_Step], count: int) -> dict[int, str]:
        return {step.place: step.precision for step in steps[:count]}

    def _choices(self, chosen: Mapping[int, str]) -> dict[str, str]:
        return {
            layer: chosen.get(place, FLOAT)
            for place, unit in enumerate(self._units)
            for layer in unit.layers
        }

    def _loss_of(self, chosen: Mapping[int, str]) -> Loss:
        return loss_of(self._quantize(self._choices(chosen)), self._samples)

    def _plan(self, chosen: Mapping[int, str], loss: Loss | None, spent: bool) -> Plan:
        choices = []
        for place, unit in enumerate(self._units):
            precision = chosen.get(place, FLOAT)
            shown = precision if precision != FLOAT else next(iter(self._open[place]), None)
            times = self._times.get(place)
            both = None
            if times is not None and shown is not None:
                both = times.milliseconds[FLOAT], times.milliseconds[shown]
            elif times is not None:
                fastest = min(v for k, v in times.milliseconds.items() if k != FLOAT)
                both = times.milliseconds[FLOAT], fastest
            choices.append(
                Choice(
                    unit.layers,
                    precision,
                    self._losses.get((place, shown)) if shown is not None else None,
                    both,
                    self._reason(place, precision, spent),
                )
            )
        return Plan(tuple(choices), loss)

    def _reason(self, place: int, precision: str, spent: bool) -> str:
        if precision == FLOAT and not self._open[place]:
            return "rejected: " + "; ".join(self._rejected.get(place, ["nothing to choose"]))
        if precision == FLOAT:
            return "the budget is spent" if spent else "nothing is saved"
        coarser = self._open[place][self._open[place].index(precision) + 1 :]
        if place in self._rejected:
            return "kept; " + "; ".join(self._rejected[place])
        if coarser:
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


def plan_text(fields: Mapping[str, Any]) -> str:
    """The table of a plan, from its JSON fields, for a person."""
    rows = []
    for row in fields["layers"]:
        times = row.get("milliseconds")
        rows.append(
            (
                " and ".join(row["layers"]),
                row["choice"],
                f"{row['loss']:+.3%}" if "loss" in row else "",
                f"{times['float']:.3f}" if times else "",
                f"{times['quantized']:.3f}" if times else "",
                row["reason"],
            )
        )
    return table(("layer", "choice", "loss alone", "ms float", "ms quantized", "reason"), rows)


def plan_fields(plan: Plan, most: float | None, source: str) -> dict[str, Any]:
    """A plan as JSON-ready fields, for manifest and report."""
    fields: dict[str, Any] = {"layers": [choice.to_dict() for choice in plan.choices]}
    if plan.loss is not None:
        fields |= {
            "evaluation": source,
            "measure": plan.loss.measure,
            "model": plan.loss.model,
            "found": plan.loss.found,
            "loss": plan.loss.relative,
            "loss_upper": plan.loss.upper,
        }
    if most is not None:
        fields["max_loss"] = most
    return fields
