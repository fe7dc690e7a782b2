"""Compares each stage of a pipeline with the stage before it, at the precision of that step alone.

Passes that claim to change no number leave a Graph that computes, in fp32, what the Graph before
them computes; the first such Graph is compared with torch. A pass that rounds leaves weights within
half a step of those before (`omnigraph.quantization.stored_values`), and a Graph that computes the
same with these weights. So that no rounding hides anything, both are compared without the rounding
of activations (`RemoveRounding`): what is left between them is the order of sums.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from omnigraph.contract.comparison import Bounds, Outputs
from omnigraph.contract.flips import Flips, chosen_by_floats, count_flips, most_flips
from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.probabilities import least_scales, with_exact_sigmoids, without_floor
from omnigraph.contract.tolerance import (
    Tolerance,
    deviations,
    noises,
    output_scales,
    with_codes,
    with_ties,
)
from omnigraph.errors import ContractError
from omnigraph.export_job import TracedProgram
from omnigraph.exporting.plan import TargetJob
from omnigraph.exporting.tables import check_tables, table_hashes, tables_of
from omnigraph.graph import Graph
from omnigraph.passes.base import Pass
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.remove_rounding import RemoveRounding
from omnigraph.quantization.activation_grids import (
    Ranges,
    activation_ranges,
    check_ranges,
    check_same_ranges,
    count_roundings,
)
from omnigraph.quantization.corrected_biases import check_corrected
from omnigraph.quantization.stored_values import check_stored, stored_values, substitute

#: The largest error of the same model, relative to the output's own size.
MOST = 0.5


class StageCheck:
    """The numbers of one program, from stage to stage.

    Args:
        item: the program with its references.
        exact: the tolerance of computations that differ by the order of their sums.
        graph: as traced.
    """

    def __init__(self, item: TracedProgram, exact: Tolerance, graph: Graph) -> None:
        self._item, self.tolerance = item, exact
        #: The least scale of each output of probabilities.
        self.least = least_scales(graph, exact)
        #: Outputs of integers and booleans that rounding may flip.
        self.chosen = chosen_by_floats(graph)
        self.torch = [reference.outputs for reference in item.references]
        #: Where torch's probabilities may be off by the floor of a Sigmoid, those of the trace.
        self._traced = self.run(graph) if any(self.least.values()) else self.torch
        own = graph.clone()
        modified = RemoveRounding()(own).modified
        self._rounds_itself = modified or item.rounded_activations > 0
        #: Of quantizers of activations; what the model itself quantizes has constant scales only
        #: once constants are folded.
        self._ranges: Ranges | None = None
        self._roundings = count_roundings(graph)
        self._tables = tables_of(graph)
        #: The outputs, without rounding, of the last Graph that was compared.
        self.outputs: Sequence[Outputs] = self.run(own) if self._rounds_itself else self.torch
        #: Where the model itself rounds, how many of these outputs may.
        self._flips = {n: most_flips(self.outputs, self.torch, n) for n in sorted(self.chosen)}

    def exact(self, graph: Graph, stage: str) -> None:
        """Refuse a Graph that computes other numbers than the last one.

        Raises:
            ContractError: naming the stage, the output, the input set and the error.
        """
        if self._rounds_itself:
            tolerance = self.tolerance.with_rounded_activations(self._item.rounded_activations)
            found = self.run(graph)
            self._compare(found, self.torch, tolerance, stage, self.chosen)
            self._count(found, stage)
        self._step(graph, stage)
        if self._ranges is not None:
            check_same_ranges(activation_ranges(graph), self._ranges, stage)
        self._ranges = activation_ranges(graph)
        self._check_roundings(graph, stage)
        self._check_tables(graph, stage)

    def rounded(self, before: Graph, graph: Graph, pass_: Pass, facts: QuantizationFacts) -> None:
        """Refuse a Graph that a pass rounded otherwise than its rounding explains.

        Args:
            before: the Graph before the pass; it is changed.
            facts: with which the pass rounded.

        Raises:
            ContractError: naming the weight, or the output, and the error.
        """
        stage = f"pass {pass_.name!r}"
        if isinstance(pass_, CorrectBiases):
            check_corrected(before, graph, pass_, facts)
        for value, forms in stored_values(before, graph):
            for stored in forms:
                if not stored.is_corrected:
                    compensated = facts.rounded.get((value.name or "", stored.grid))
                    check_stored(value, stored, stage, compensated)
        if isinstance(pass_, InsertQdq) and facts.statistics is not None:
            check_ranges(graph, facts.statistics)
        substitute(before, graph)
        self.outputs = self.run(unrounded(before))
        self._step(graph, stage)
        self._ranges = activation_ranges(graph)
        self._roundings = count_roundings(graph)
        self._check_tables(graph, stage)

    def _check_roundings(self, graph: Graph, stage: str) -> None:
        """Passes that claim to change no number round nothing that was not rounded before."""
        found = count_roundings(graph)
        if self.outputs is not self.torch and found > self._roundings:
            raise ContractError(
                f"More activations of program {self._item.name!r} are rounded after {stage}",
                expected=f"{self._roundings} at most",
                found=str(found),
                hint="a pass that rounds says so: `rounds = True`",
            )
        self._roundings = found

    def _check_tables(self, graph: Graph, stage: str) -> None:
        tables = tables_of(graph)
        check_tables(self._tables, tables, stage)
        self._tables = tables

    def _step(self, graph: Graph, stage: str) -> None:
        found = self.run(self.compared(graph))
        before = self._traced if self.outputs is self.torch else self.outputs
        self._compare(found, before, self.tolerance, stage)
        if self.outputs is not self.torch:
            self.outputs = found

    def compared(self, graph: Graph) -> Graph:
        """The Graph as it is compared: unrounded, but where nothing may have been rounded yet."""
        return graph if self.outputs is self.torch else unrounded(graph)

    def run(self, graph: Graph) -> list[Outputs]:
        """The outputs of a Graph for each input set."""
        runner = GraphRunner(with_exact_sigmoids(graph) if any(self.least.values()) else graph)
        return [runner.run(reference.feeds) for reference in self._item.references]

    def _count(self, found: Sequence[Outputs], stage: str) -> None:
        """Refuse a Graph that rounds, and flips more choices of floats than its rounding does."""
        for output, most in self._flips.items():
            wrong = count_flips(found, self.torch, output)
            if wrong > most:
                raise ContractError(
                    f"Output {output!r} of program {self._item.name!r} differs from torch after "
                    f"{stage}; no artifact was written",
                    expected=f"{most:,} wrong elements at most over all input sets",
                    found=f"{wrong:,}",
                    hint="`omnigraph bisect MODEL --target T` names the pass and the node",
                )

    def _compare(
        self,
        found: Sequence[Outputs],
        expected: Sequence[Outputs],
        tolerance: Tolerance,
        stage: str,
        counted: Collection[str] = (),
    ) -> None:
        least = self.least if expected is self.torch else without_floor(self.least)
        scales = output_scales(expected, least)
        for outputs, before, reference in zip(found, expected, self._item.references, strict=True):
            for output, deviation in deviations(outputs, before, scales).items():
                if output in counted:
                    continue
                allowed = with_ties(tolerance, before[output], scales[output])
                if not deviation.within(allowed):
                    case = reference.case
                    raise ContractError(
                        f"Output {output!r} of program {self._item.name!r} differs from "
                        f"{'torch' if expected is self.torch else 'the graph before'} after "
                        f"{stage}, on input set {case.name!r} {dict(case.sizes)}; no artifact was "
                        "written",
                        expected=f"an error within {tolerance.rms:.2e} rms and "
                        f"{tolerance.peak:.2e} peak, without the rounding of activations",
                        found=f"{deviation.rms:.2e} rms and {deviation.peak:.2e} peak",
                        hint="`omnigraph bisect MODEL --target T` names the pass and the node",
                    )


def unrounded(graph: Graph) -> Graph:
    """A copy of a Graph that rounds no activation."""
    copy = graph.clone()
    RemoveRounding()(copy)
    return copy


def bounds_of(job: TargetJob, check: StageCheck, graph: Graph, rtol: float | None) -> Bounds:
    """How far the artifact of a lowered Graph may be; ``rtol`` replaces the distance from torch."""
    exact, target, tables = check.tolerance, job.target, table_hashes(graph)
    if check.outputs is check.torch and target.rounding(job.precision) == "fp32":
        total = exact if rtol is None else Tolerance(rtol, 16 * rtol)
        return Bounds(exact, total, tables=tables, least=check.least)
    copy = graph.clone()
    target.emulate(copy, job.precision)
    emulated = check.run(copy)
    noise = with_codes(noises(emulated, check.outputs, check.least), check.outputs)
    flips = {
        name: Flips(
            most_flips(emulated, check.outputs, name), most_flips(emulated, check.torch, name)
        )
        for name in sorted(check.chosen)
    }
    stored = noises(check.outputs, check.torch, check.least)
    rms = peak = 0.0
    for output, found in noise.items():
        if output in flips:
            continue
        limit = found.limit(exact)
        rms = max(rms, limit.single + stored[output].single)
        peak = max(peak, limit.peak + stored[output].peak)
    total = Tolerance(min(rms, MOST), min(peak, 16 * MOST))
    if rtol is not None:
        total = Tolerance(rtol, 16 * rtol)
    return Bounds(exact, total, check.outputs, noise, tables, check.least, flips)
