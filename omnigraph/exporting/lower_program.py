"""Runs a target's passes on one traced program."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from omnigraph.contract.comparison import Bounds
from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.export_job import TracedProgram
from omnigraph.exporting.observers import observers
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.plan import TargetJob
from omnigraph.exporting.stage_check import StageCheck, bounds_of
from omnigraph.graph import Graph
from omnigraph.ledger.attention import AttentionSite, attention_sites
from omnigraph.ledger.precision import LayerPrecision, layer_precisions
from omnigraph.lowering import Lowered
from omnigraph.passes.base import Pass, PassRecord, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.pipeline import Pipeline
from omnigraph.quantization.finer_cost import finer_cost
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.quantize import Quantized, check_rounding, run_calibrated


@dataclass(frozen=True)
class LoweredProgram:
    """One program that a target takes, and how it was made.

    Args:
        bounds: of its artifact.
        deviation: how far the quantized Graph is from torch; None where nothing was quantized.
        facts: all that is known of the model's activations and weights after it.
        finer_milliseconds: what its finer layers cost (`finer_cost`); None where that is not known.
    """

    program: Lowered
    records: list[PassRecord]
    ledger: list[AttentionSite]
    layers: list[LayerPrecision]
    bounds: Bounds
    deviation: Deviation | None = None
    facts: QuantizationFacts = field(default_factory=QuantizationFacts)
    finer_milliseconds: float | None = None


def lower_program(
    job: TargetJob,
    item: TracedProgram,
    graph: Graph,
    options: ExportOptions,
    calibrator: Calibrator | None,
    facts: QuantizationFacts,
) -> LoweredProgram:
    """Run a target's pipeline on one program, and compare each stage with the one before.

    Args:
        graph: of the program, as traced; rewritten in place.
        calibrator: gathers facts for passes that need them; None where nothing is quantized.
        facts: what is known so far, and the choice for each layer.

    Raises:
        ContractError: a pass changes the numbers, or rounding does so by more than it explains.
        UnsupportedError: the target cannot take a node of the final Graph.
    """
    exact = exact_tolerance(item, options)
    runner = _Runner(job, item, calibrator)
    check = StageCheck(item, exact, graph)
    done, deviation, cost = Quantized(facts=facts), None, None
    for passes, rounding in _segments(job.pipeline, each=options.verify_each):
        first = len(done.records)
        done = runner.run(graph, passes, done)
        if not first or any(record.modified for record in done.records[first:]):
            check.exact(graph, f"pass {passes[-1].name!r}" if passes else "the trace")
        if rounding is None:
            continue
        before = graph.clone()
        done = runner.run(graph, (rounding,), done)
        if isinstance(rounding, InsertQdq) and calibrator is not None and calibrator.keeps_finer:
            timed = job.target, job.precision, job.settings
            cost = finer_cost(before, done.facts, *timed, calibrator.progress)
        if done.records[-1].modified:
            check.rounded(before, graph, rounding, done.facts)
        if done.rounding is not None and deviation is None:
            deviation = check_rounding(graph, item, done.rounding)
    job.target.check_nodes(item.name, graph, job.precision)
    bounds = bounds_of(job, check, graph, options.rtol)
    return LoweredProgram(
        Lowered(item.name, graph, item.inputs, item.outputs, item.dims, item.state),
        done.records,
        attention_sites(graph, done.records),
        done.rounding.layers if done.rounding is not None else layer_precisions(graph),
        bounds,
        deviation,
        done.facts,
        cost,
    )


def _segments(pipeline: Pipeline, *, each: bool) -> Iterator[tuple[tuple[Pass, ...], Pass | None]]:
    """Passes that change no number, each time up to one that rounds; None where none does.

    Args:
        each: whether each of them is a segment of its own.
    """
    exact: list[Pass] = []
    for pass_ in pipeline:
        if pass_.rounds:
            yield tuple(exact), pass_
            exact = []
        elif each:
            yield (pass_,), None
        else:
            exact.append(pass_)
    if not each:
        yield tuple(exact), None


def exact_tolerance(item: TracedProgram, options: ExportOptions) -> Tolerance:
    """The tolerance of computations in fp32 that differ by the order of their sums."""
    exact = Tolerance.for_precision("fp32", depth=item.depth, contraction=item.contraction)
    if options.rtol is None or options.rtol <= exact.rms:
        return exact
    return Tolerance(options.rtol, 16 * options.rtol)


@dataclass(frozen=True)
class _Runner:
    """Runs passes of a pipeline on one program, with the observers of an export."""

    job: TargetJob
    item: TracedProgram
    calibrator: Calibrator | None

    def run(self, graph: Graph, passes: tuple[Pass, ...], before: Quantized) -> Quantized:
        """Run some passes after others; all results together."""
        look = [*observers(self.job.target.name, self.item.name)]
        first = len(before.records)
        if self.calibrator is None:
            records = run_passes(graph, passes, look, first=first)
            return replace(before, records=[*before.records, *records])
        done = run_calibrated(graph, passes, self.calibrator, before.facts, look, first=first)
        return Quantized(
            [*before.records, *done.records], done.facts, done.rounding or before.rounding
        )
