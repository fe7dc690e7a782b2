"""Chooses the precision of each layer: measures loss and time, and makes a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import UsageError
from omnigraph.graph import Graph
from omnigraph.lowering import Target
from omnigraph.passes.analysis.quantization.linear_layers import is_chosen
from omnigraph.passes.analysis.quantization.scheme import Scheme
from omnigraph.passes.base import run_passes
from omnigraph.passes.calibrated_pass import CalibratedPass, QuantizationFacts
from omnigraph.passes.pipeline import Pipeline
from omnigraph.precision import FLOAT, PRECISIONS, carrier_of
from omnigraph.quantization.budget import BudgetSearch, plan_fields, units_of
from omnigraph.quantization.evaluation import Run, sample_of
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.quantize import quantized_copy
from omnigraph.quantization.region_timing import RegionTimes, Timing, regions, time_regions


@dataclass(frozen=True)
class Search:
    """The task of choosing the precision of each layer.

    Args:
        target: its schemes are the choices.
        precision: the one that the user asked for; it limits what a layer may become.
        pipeline: all passes, for the precision that carries this one.
        options: of quantization, with the loss to stay within and the speed gate.
        settings: options of the target.
    """

    target: Target
    precision: str
    pipeline: Pipeline
    options: Quantization
    settings: Mapping[str, str]

    @property
    def schemes(self) -> dict[str, Scheme]:
        """The schemes that a layer may get, by precision, the finest first."""
        return {
            name: self.options.four_bits.apply(scheme)
            for name in PRECISIONS[self.precision].candidates
            if (scheme := self.target.schemes.get(name)) is not None
        }

    def choices(self, names: Mapping[str, str]) -> dict[str, Scheme | None]:
        """The scheme of each layer, by the name of its precision."""
        return self.target.layer_schemes(names, self.options.four_bits)


@dataclass(frozen=True)
class Chosen:
    """The result of a search.

    Args:
        facts: all that is known after it, with the choice for each layer.
        manifest: the plan as JSON-ready fields.
    """

    facts: QuantizationFacts
    manifest: Mapping[str, Any]


def choose_precisions(search: Search, calibrator: Calibrator, facts: QuantizationFacts) -> Chosen:
    """Choose the precision of every layer, on one program; the others have the same weights.

    Args:
        calibrator: of the program; its Graph is as traced, and is not changed.
        facts: known so far.

    Raises:
        UsageError: there is nothing to measure the loss on, or the target does not run here.
    """
    return _Searcher(search, calibrator).run(facts)


class _Searcher:
    """One search, on one program."""

    def __init__(self, search: Search, calibrator: Calibrator) -> None:
        assert calibrator.item.graph is not None
        self._search, self._calibrator = search, calibrator
        passes = list(search.pipeline)
        first = next(
            (place for place, p in enumerate(passes) if isinstance(p, CalibratedPass)), len(passes)
        )
        self._graph = calibrator.item.graph.clone()
        run_passes(self._graph, passes[:first])
        keep = search.options.keep
        self._units = units_of(self._graph, lambda layer: is_chosen(layer, keep))

    def run(self, facts: QuantizationFacts) -> Chosen:
        """Measure and choose."""
        search, options = self._search, self._search.options
        # All candidates at once, so that the data are read once for all that is to be observed.
        for precision in search.schemes:
            _, facts = self._quantized(self._all(precision), facts)
        known = facts

        def quantize(choices: Mapping[str, str]) -> Run:
            return GraphRunner(self._quantized(choices, known)[0]).run

        samples = []
        if options.max_loss is not None:
            model = GraphRunner(self._graph).run
            item = self._calibrator.item
            given = self._calibrator.samples.for_loss(item)
            samples = [sample_of(model, *pair, item.inputs, item.outputs) for pair in given]
        times = self._times(known) if options.speed_gate is not None else {}
        progress = self._calibrator.progress
        budget = BudgetSearch(self._units, list(search.schemes), quantize, samples, times, progress)
        plan = budget.run(options.max_loss)
        source = self._calibrator.samples.evaluation_source
        return Chosen(
            replace(known, choices=search.choices(plan.by_layer)),
            plan_fields(plan, options.max_loss, source),
        )

    def _quantized(
        self, names: Mapping[str, str], facts: QuantizationFacts
    ) -> tuple[Graph, QuantizationFacts]:
        """The Graph quantized by choices, and all facts known then, without these choices."""
        chosen = replace(facts, choices=self._search.choices(names))
        copy, known = quantized_copy(self._graph, self._search.pipeline, self._calibrator, chosen)
        return copy, replace(known, choices=facts.choices)

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
        # With smoothing: it gives weights the names by which statistics are stored.
        smooth, facts = self._quantized(self._all(FLOAT), facts)
        found = regions(smooth)
        assert search.options.speed_gate is not None
        timing = Timing(
            search.target,
            carrier_of(search.precision),
            search.schemes,
            search.options.speed_gate,
            replace(facts, choices={}),
            search.settings,
        )
        timed = time_regions(found, timing, self._calibrator.progress)
        places = {layer: place for place, unit in enumerate(self._units) for layer in unit.layers}
        times = {}
        for region, whole in zip(found, timed, strict=True):
            sizes = [linear.contraction * linear.channels for linear in region.linear_layers]
            for linear, size in zip(region.linear_layers, sizes, strict=True):
                if (place := places.get(linear.layer)) is not None:
                    times[place] = whole.scaled(size / sum(sizes))
        return times
