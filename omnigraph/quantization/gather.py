"""Gathers the facts that a calibrated pass needs: observed ranges and rounded weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import LinearLayer
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import (
    RoundedWeight,
    WeightGrid,
    compensate,
)
from omnigraph.passes.calibrated_pass import (
    CalibratedPass,
    Needs,
    QuantizationFacts,
    QuantizingPass,
)
from omnigraph.passes.normalize_tokens import NormalizeTokens
from omnigraph.progress import Progress, silent
from omnigraph.quantization.calibration import calibrate, second_moments
from omnigraph.quantization.data import Feedings
from omnigraph.quantization.options import (
    COMPENSATED,
    LEARNED,
    NEAREST,
    PRESETS,
    Quantization,
)
from omnigraph.quantization.samples import Samples
from omnigraph.quantization.sensitive import with_finer


@dataclass(frozen=True)
class Calibrator:
    """Gathers facts of one program, on the Graph that the passes before left.

    Args:
        options: how to calibrate, and how to round weights.
        samples: to observe.
        item: the program.
        progress: called with what is being done.
    """

    options: Quantization
    samples: Samples
    item: TracedProgram
    progress: Progress = silent

    def inform(
        self, pass_: CalibratedPass, graph: Graph, facts: QuantizationFacts
    ) -> tuple[CalibratedPass, QuantizationFacts]:
        """A pass with the facts that it needs, and all facts known then.

        A pass with statistics, choices or kept layers of its own keeps those.

        Args:
            facts: known so far.

        Raises:
            UsageError: an activation is NaN or infinite.
        """
        own = pass_.known
        choices = own.choices or facts.choices
        pass_ = replace(
            pass_, keep=pass_.keep or self.options.keep, facts=replace(own, choices=choices)
        )
        needs = pass_.needs(graph)
        if own.statistics is not None:
            needs = replace(needs, observe=())
        facts = self.gather(needs, graph, facts)
        statistics = own.statistics or facts.statistics
        given = QuantizationFacts(statistics, facts.rounded, choices)
        pass_ = replace(pass_, facts=given)
        if isinstance(pass_, NormalizeTokens):
            most = PRESETS[self.options.preset] if self.keeps_finer else math.inf
            pass_ = replace(pass_, most=most)
        elif isinstance(pass_, QuantizingPass) and self.keeps_finer:
            facts = with_finer(pass_, graph, facts, PRESETS[self.options.preset])
            pass_ = replace(pass_, facts=replace(given, choices=own.choices or facts.choices))
        return pass_, facts

    @property
    def keeps_finer(self) -> bool:
        """Whether sensitive layers are found by a forecast: on DATA, where nothing else chooses."""
        options = self.options
        chosen = options.max_loss is not None or options.speed_gate is not None
        return self.samples.data is not None and not chosen

    def gather(self, needs: Needs, graph: Graph, facts: QuantizationFacts) -> QuantizationFacts:
        """The facts, with those added that are needed and not known yet.

        All programs and targets have the same names of weights, by which facts are stored: each
        activation is observed once.
        """
        statistics = self._observed(needs.observe, graph, facts.statistics)
        new = [(linear, grid) for linear, grid in needs.round if self._rounding(grid) != NEAREST]
        rounded = self._rounded(new, graph, facts)
        return replace(facts, statistics=statistics, rounded=rounded)

    def _observed(
        self, layers: Sequence[LinearLayer], graph: Graph, known: Statistics | None
    ) -> Statistics | None:
        """The statistics, with those added of layers that were not observed yet."""
        before = known.observations if known is not None else {}
        new = [linear for linear in layers if linear.weight.name not in before]
        feeds = self.samples.of(self.item) if new else None
        if feeds is None:
            return known
        found = calibrate(
            graph,
            new,
            feeds,
            method=self.options.method,
            source=self.samples.source if known is None else known.source,
            progress=self.progress,
        )
        if isinstance(feeds, Feedings):
            found = replace(found, samples=feeds.count)
        return found if known is None else known.joined(found)

    def _rounding(self, grid: WeightGrid) -> str:
        """How weights of a grid are rounded: one of ``ROUNDINGS``."""
        if self.options.rounding is not None:
            return self.options.rounding
        return COMPENSATED if grid.is_integer and self.samples.data is not None else NEAREST

    def _rounded(
        self,
        layers: Sequence[tuple[LinearLayer, WeightGrid]],
        graph: Graph,
        facts: QuantizationFacts,
    ) -> dict[tuple[str, WeightGrid], RoundedWeight]:
        """The rounded weights, with new ones: learned, or compensated by second moments."""
        rounded = dict(facts.rounded)
        new = {
            key: linear
            for linear, grid in layers
            if (key := (linear.weight.name or "", grid)) not in rounded
        }
        feeds = self.samples.of(self.item) if new else None
        if feeds is None:
            if self.options.rounding == LEARNED and self.samples.data is None:
                raise UsageError(
                    "Learned rounding needs inputs like real ones",
                    expected="samples as --calibration DATA",
                    found=self.samples.source,
                    hint="a file of --save-calibration holds ranges, and no samples",
                )
            return rounded
        if self.options.rounding == LEARNED:
            # Imports torch, which is there where a model is compiled.
            from omnigraph.quantization.learned_rounding import learn_rounding

            pairs = [(linear, grid) for (_, grid), linear in new.items()]
            for name, weight in learn_rounding(graph, pairs, feeds, progress=self.progress):
                rounded[name, weight.grid] = weight
                new.pop((name, weight.grid))
            if not new:
                return rounded
        moments_of = second_moments(graph, list(new.values()), feeds, progress=self.progress)
        for found, moments in moments_of:
            for (name, grid), linear in new.items():
                if name == found:
                    self.progress(f"round {name} with compensation")
                    rounded[name, grid] = compensate(linear.matrix, moments, grid)
        return rounded
