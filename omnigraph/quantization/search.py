"""Chooses the precision of each layer: measures loss and time, and makes a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.passes.analysis.quantization.linear_layers import is_chosen
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.precision import FLOAT, bits_of, carrier_of
from omnigraph.quantization.budget import BudgetSearch, units_of
from omnigraph.quantization.evaluation import (
    Run,
    default_metrics,
    evaluation_of,
    fitting,
    misfit,
)
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.judge import Judge, JudgedProgram
from omnigraph.quantization.metrics.metric import Example
from omnigraph.quantization.metrics.registry import METRICS, metric_named
from omnigraph.quantization.plan_report import plan_fields
from omnigraph.quantization.quantized_program import QuantizedProgram, Search
from omnigraph.quantization.region_timing import RegionTimes, Timing, regions, time_regions

#: A program, and what runs its Graph in float.
_Model = tuple[TracedProgram, Run]


@dataclass(frozen=True)
class Chosen:
    """The result of a search.

    Args:
        facts: all that is known after it, with the choice for each layer.
        manifest: the plan as JSON-ready fields.
    """

    facts: QuantizationFacts
    manifest: Mapping[str, Any]


def choose_precisions(
    search: Search, calibrators: Sequence[Calibrator], facts: QuantizationFacts
) -> Chosen:
    """Choose the precision of every layer of a model.

    Args:
        calibrators: one for each program, whose Graph is as traced, and is not changed.
        facts: known so far.

    Raises:
        UsageError: there is nothing to measure the loss on, or the target does not run here.
    """
    return _Searcher(search, calibrators).run(facts)


class _Searcher:
    """One search, over all programs of a model."""

    def __init__(self, search: Search, calibrators: Sequence[Calibrator]) -> None:
        self._search = search
        self._programs = {c.item.name: QuantizedProgram(search, c) for c in calibrators}
        self._samples, self._progress = calibrators[0].samples, calibrators[0].progress
        keep = search.options.keep
        graphs = [program.graph for program in self._programs.values()]
        self._units = units_of(graphs, lambda layer: is_chosen(layer, keep))

    def run(self, facts: QuantizationFacts) -> Chosen:
        """Measure and choose."""
        search, options = self._search, self._search.options
        judged = self._judged() if options.max_loss is not None else []
        # All candidates at once, so that the data are read once for all that is to be observed.
        for program in self._programs.values():
            for precision in search.schemes:
                _, facts = program.quantized(self._all(precision), facts)
        known = facts
        unrunnable = search.target.unrunnable()
        judge = Judge(
            judged,
            lambda name, choices: self._programs[name].run(choices, known),
            None if unrunnable else lambda n, choices: self._programs[n].compiled(choices, known),
        )
        times = self._times(known) if options.speed_gate is not None else {}
        bits = {
            name: bits_of(FLOAT) if scheme.tables is None else scheme.tables.dtype.bitwidth
            for name, scheme in search.schemes.items()
        }
        budget = BudgetSearch(self._units, list(bits), judge, times, self._progress, bits)
        plan = budget.run(options.max_loss)
        where = f"target {search.target.name}"
        if unrunnable:
            where = f"the quantized Graph in onnxruntime, for {where} does not run here"
        fields = plan_fields(plan, judge, options.max_loss, where)
        if plan.losses is not None:
            fields["seen_in_calibration"] = self._samples.seen
        return Chosen(replace(known, choices=search.choices(plan.by_layer)), fields)

    def _judged(self) -> list[JudgedProgram]:
        """Every program with its metric and its evaluation samples.

        Raises:
            UsageError: a metric is asked for, and fits none of the programs or not their data.
        """
        if not self._samples.can_judge:
            return []
        asked = self._search.options.metric
        models = {p.item.name: (p.item, GraphRunner(p.graph).run) for p in self._programs.values()}
        judged = [self._judged_program(name, models) for name in models]
        if asked is not None and not any(p.evaluation.metric.name == asked for p in judged):
            found = [fitting(run, self._examples(item, models)) for item, run in models.values()]
            raise misfit(
                metric_named(asked),
                [_gives(item) for item, _ in models.values()],
                judged[0].source,
                [name for name in METRICS if any(name in names for names in found)]
                or ["agreement"],
            )
        return judged

    def _judged_program(self, name: str, models: Mapping[str, _Model]) -> JudgedProgram:
        item, model = models[name]
        metrics, asked = default_metrics(item.outputs), self._search.options.metric
        if asked is not None:
            metrics = [metric_named(asked), *metrics]
        source = self._samples.evaluation_source
        found = evaluation_of(model, self._examples(item, models), metrics)
        has_data = found is not None
        if found is None:
            source = "the contract's input sets"
            outputs = {id(reference.feeds): reference.outputs for reference in item.references}
            found = evaluation_of(lambda feeds: outputs[id(feeds)], _contract(item), metrics)
        assert found is not None  # agreement fits all
        chosen = found.metric
        leads = has_data and (chosen.of_result if asked is None else chosen.name == asked)
        return JudgedProgram(name, self._programs[name].layers, found, source, leads)

    def _examples(self, item: TracedProgram, models: Mapping[str, _Model]) -> Iterator[Example]:
        """The evaluation samples of a program; none where the data lack inputs of it."""
        others = [(other, run) for name, (other, run) in models.items() if name != item.name]
        predicts = self._samples.evaluation is not None
        for feeds, data in self._samples.for_loss(item, others):
            yield Example(feeds, data, item.inputs, item.outputs, predicts)

    def _all(self, precision: str) -> dict[str, str]:
        return {layer: precision for unit in self._units for layer in unit.layers}

    def _times(self, facts: QuantizationFacts) -> dict[int, RegionTimes]:
        """The times of each unit: its region's, in proportion to the unit's weights."""
        search = self._search
        if (reason := search.target.unrunnable()) is not None:
            raise UsageError(
                f"The speed gate times on target {search.target.name!r}, which does not run here: "
                f"{reason}",
                hint="leave --speed-gate out, or export on the machine that it is for",
            )
        assert search.options.speed_gate is not None
        places = {layer: place for place, unit in enumerate(self._units) for layer in unit.layers}
        times: dict[int, RegionTimes] = {}
        for program in self._programs.values():
            # With smoothing: it gives weights the names by which statistics are stored.
            smooth, facts = program.quantized(self._all(FLOAT), facts)
            found = [
                region
                for region in regions(smooth)
                if any(places.get(r.layer, -1) not in {-1, *times} for r in region.linear_layers)
            ]
            timing = Timing(
                search.target,
                carrier_of(search.precision),
                search.schemes,
                search.options.speed_gate,
                replace(facts, choices={}),
                search.settings,
            )
            for region, whole in zip(
                found, time_regions(found, timing, self._progress), strict=True
            ):
                sizes = [linear.contraction * linear.channels for linear in region.linear_layers]
                for linear, size in zip(region.linear_layers, sizes, strict=True):
                    if (place := places.get(linear.layer)) is not None:
                        times.setdefault(place, whole.scaled(size / sum(sizes)))
        return times


def _contract(item: TracedProgram) -> Iterator[Example]:
    """The contract's inputs as examples."""
    for reference in item.references:
        feeds = reference.feeds
        yield Example(feeds, feeds, item.inputs, item.outputs, predicts=False)


def _gives(item: TracedProgram) -> str:
    """What a program gives, for a person."""
    outputs = [
        f"{spec.role + ' ' if spec.role else ''}{spec.name} "
        f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for spec in item.outputs
        if spec.role != "present"
    ]
    return f"program {item.name!r} gives {', '.join(outputs)}"
