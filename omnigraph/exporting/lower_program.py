"""Runs a target's passes on one traced program."""

from __future__ import annotations

from dataclasses import dataclass, field

from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.export_job import TracedProgram
from omnigraph.exporting.observers import observers
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.plan import TargetJob
from omnigraph.graph import Graph
from omnigraph.ledger.attention import AttentionSite, attention_sites
from omnigraph.ledger.precision import LayerPrecision, layer_precisions
from omnigraph.lowering import Lowered
from omnigraph.passes.base import PassRecord, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.pipeline import Pipeline
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.quantize import Quantized, run_calibrated


@dataclass(frozen=True)
class LoweredProgram:
    """One program that a target takes, and how it was made.

    Args:
        tolerance: of its artifact.
        deviation: how far the quantized Graph is from torch; None where nothing was quantized.
        facts: all that is known of the model's activations and weights after it.
    """

    program: Lowered
    records: list[PassRecord]
    ledger: list[AttentionSite]
    layers: list[LayerPrecision]
    tolerance: Tolerance
    deviation: Deviation | None = None
    facts: QuantizationFacts = field(default_factory=QuantizationFacts)


def lower_program(
    job: TargetJob,
    item: TracedProgram,
    graph: Graph,
    options: ExportOptions,
    calibrator: Calibrator | None,
    facts: QuantizationFacts,
) -> LoweredProgram:
    """Run a target's pipeline on one program.

    Args:
        graph: of the program, as traced; rewritten in place.
        calibrator: gathers facts for passes that need them; None where nothing is quantized.
        facts: what is known so far, and the choice for each layer.

    Raises:
        ContractError: a pass changes the numbers, or quantization does so by more than its noise.
        UnsupportedError: the target cannot take a node of the final Graph.
    """
    runner = _Runner(job, item, options, calibrator)
    exact = Tolerance.for_precision("fp32", depth=item.depth, contraction=item.contraction)
    exact = exact.with_rounded_activations(item.rounded_activations)
    floats = float_tolerance(job, item, options)
    start, end = job.pipeline.until("quantized"), job.pipeline.from_stage("kernels")
    front = runner.run(graph, start, facts, (exact, floats))
    rounding, tolerance = front.rounding, floats
    if rounding is not None and options.rtol is None:
        tolerance = rounding.tolerance(floats)
    if any(pass_.rounds for pass_ in start):
        exact = tolerance
    rest = runner.run(graph, end, front.facts, (exact, tolerance), first=len(front.records))
    records = [*front.records, *rest.records]
    ledger = attention_sites(graph, records)
    layers = rounding.layers if rounding is not None else layer_precisions(graph)
    job.target.check_nodes(item.name, graph, job.precision)
    return LoweredProgram(
        Lowered(item.name, graph, item.inputs, item.outputs, item.dims, item.state),
        records,
        ledger,
        layers,
        tolerance,
        rounding.deviation if rounding is not None else None,
        rest.facts,
    )


def float_tolerance(job: TargetJob, item: TracedProgram, options: ExportOptions) -> Tolerance:
    """The tolerance for rounding to float types, and for activations that the model quantizes.

    Where the export quantizes, `omnigraph.quantization.noise` counts those activations.
    """
    if options.rtol is not None:
        return Tolerance(options.rtol, 16 * options.rtol)
    floats = Tolerance.for_precision(
        job.target.rounding(job.precision), depth=item.depth, contraction=item.contraction
    )
    return floats if job.quantizes else floats.with_rounded_activations(item.rounded_activations)


@dataclass(frozen=True)
class _Runner:
    """Runs stages of a pipeline on one program, with the observers of an export."""

    job: TargetJob
    item: TracedProgram
    options: ExportOptions
    calibrator: Calibrator | None

    def run(
        self,
        graph: Graph,
        pipeline: Pipeline,
        facts: QuantizationFacts,
        tolerances: tuple[Tolerance, Tolerance],
        first: int = 0,
    ) -> Quantized:
        """Run some stages.

        Args:
            tolerances: until a pass rounds, and from then on.
            first: the position of the first pass in the whole pipeline.
        """
        exact, rounded = tolerances
        compared = rounded if self.options.verify_each else None
        look = [*observers(self.job.target.name, self.item, compared, exact)]
        if self.calibrator is not None:
            return run_calibrated(graph, pipeline, self.calibrator, facts, look, first=first)
        return Quantized(run_passes(graph, pipeline, look, first=first), facts)
