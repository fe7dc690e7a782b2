"""Finds the first pass, then the first node, at which a program's numbers differ too much."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.contract.comparison import Openers, Run, check_artifact
from omnigraph.contract.graph_check import check_graph
from omnigraph.contract.tolerance import Tolerance
from omnigraph.emitter import Emitter
from omnigraph.errors import OmniGraphError, TraceError
from omnigraph.export_job import TracedProgram, traced_program
from omnigraph.exporting.lower_program import exact_tolerance
from omnigraph.exporting.options import OF_MODEL, ExportOptions
from omnigraph.exporting.plan import TargetJob, model_settings, plan_jobs
from omnigraph.exporting.program_choice import choose_programs
from omnigraph.exporting.stage_check import StageCheck, bounds_of, unrounded
from omnigraph.frontends.resolve import ModelSource, resolve
from omnigraph.frontends.training_modes import TrainingModes
from omnigraph.graph import Graph, describe
from omnigraph.input_sets import contract_cases
from omnigraph.inspection.node_by_node import (
    NodeRunner,
    Values,
    compared,
    first_parted_node,
    most_parted_node,
    showing_all,
)
from omnigraph.inspection.parting import Parting, parted_output
from omnigraph.lowering import Lowered
from omnigraph.passes.base import Pass, PassRecord, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.program import Program, TensorSpec
from omnigraph.progress import Progress, silent
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.quantize import Rounding, check_rounding, run_one
from omnigraph.quantization.samples import Samples, prepare
from omnigraph.quantization.stored_values import substitute
from omnigraph.tracing.compared_positions import compared_positions
from omnigraph.tracing.hidden_rows import hidden_row
from omnigraph.tracing.names import output_specs
from omnigraph.tracing.trace import check_trace, reference_for, trace_within_limits

#: Finds a node of the second of two Graphs.
Find = Callable[[Graph, Graph, Sequence[Values], Tolerance], ir.Node | None]
#: Roundings in one node, or in the few that a pass makes one.
_DEPTH = 8


def bisect(
    model: object,
    target: str,
    options: ExportOptions | None = None,
    *,
    until: str | None = None,
    progress: Progress = silent,
    **given: Any,
) -> list[Parting]:
    """Find where the numbers of each program of a model first differ from the reference.

    Args:
        model: as for ``export``.
        target: whose pipeline and compiler to run.
        options: as for ``export``.
        until: the stage to stop after; None goes on to the artifact.
        progress: called with each stage.
        given: fields of `ExportOptions` by keyword.

    Returns:
        One finding for each program whose numbers differ; none where all are within the contract.

    Raises:
        OmniGraphError: the model cannot be traced, or the target cannot do the precision.
    """
    asked = ExportOptions.of(options, given)
    asked.check_used((*OF_MODEL, "quantization", "calibration", "rtol"), "bisect")
    (job,) = plan_jobs([target], asked)
    if until is not None:
        job = replace(job, pipeline=job.pipeline.until(until))
    with TrainingModes() as modes:
        source = resolve(
            model,
            config=asked.config,
            settings=model_settings([job], asked),
            inputs=asked.inputs,
            modes=modes,
        )
        return _bisect(job, asked, source, progress, until is None)


def _bisect(
    job: TargetJob, asked: ExportOptions, source: ModelSource, progress: Progress, to_the_end: bool
) -> list[Parting]:
    programs = choose_programs(source, asked.programs, asked.dynamic or {})
    samples, facts = None, QuantizationFacts()
    if job.quantizes:
        judges = job.judges(asked.quantizing)  # whose samples are held out of calibration
        prepared = prepare(asked.quantizing, programs, judges=judges)
        programs, samples, facts = prepared.programs, prepared.samples, prepared.facts
        choices = job.target.layer_schemes(asked.quantizing.choices, asked.quantizing.four_bits)
        facts = replace(facts, choices=choices)
    partings = []
    for program in programs:
        bisection = _Bisection(job, asked, samples, progress, to_the_end)
        found, facts = bisection.run(program, facts)
        partings += [found] if found is not None else []
    return partings


@dataclass(frozen=True)
class _Bisection:
    """Bisects the programs of one model, one after the other."""

    job: TargetJob
    options: ExportOptions
    samples: Samples | None
    progress: Progress
    to_the_artifact: bool

    def run(
        self, program: Program, facts: QuantizationFacts
    ) -> tuple[Parting | None, QuantizationFacts]:
        """Where the numbers of one program differ, and all facts known then."""
        self._report(program, "trace")
        program, graph = trace_within_limits(program)
        cases = contract_cases(program, compared_positions(graph, rounds=self.job.rounds_floats))
        references = [reference_for(program, case) for case in cases]
        try:
            check_trace(program, graph, references)
        except TraceError as error:
            return Parting(program.name, "the trace", None, error=str(error)), facts
        outputs = output_specs(graph)
        if (hidden := hidden_row(program, seed=len(cases) + 1)) is not None:
            references.insert(0, hidden)
        item = traced_program(program, graph, outputs, program.state, [*references, references[0]])
        calibrator = None
        if self.samples is not None:
            calibrator = Calibrator(self.options.quantizing, self.samples, item, self.progress)
        tolerance = exact_tolerance(item, self.options)
        passes = PassBisection(graph, item, tolerance, calibrator, facts)
        found = passes.run(self.job.pipeline, lambda stage: self._report(program, stage))
        if found is None and self.to_the_artifact:
            self._report(program, f"artifact of {self.job.target.name}")
            found = bisect_artifact(graph, item, self.job, self.options, passes.check)
        return found, passes.facts

    def _report(self, program: Program, stage: str) -> None:
        self.progress(f"{program.name}: {stage}")


class PassBisection:
    """Runs a pipeline pass by pass, and compares each Graph with the one before, as an export does.

    Args:
        graph: a Graph as traced; rewritten in place.
        item: the program, with the outputs of the reference.
        tolerance: of computations that differ by the order of their sums.
        calibrator: gathers facts for passes that need them; None where nothing is quantized.
        facts: known so far.
    """

    def __init__(
        self,
        graph: Graph,
        item: TracedProgram,
        tolerance: Tolerance,
        calibrator: Calibrator | None = None,
        facts: QuantizationFacts | None = None,
    ) -> None:
        self._graph, self._item = graph, item
        self._calibrator = calibrator
        self._rounding: Rounding | None = None  # of the last pass, if it quantized
        self._feeds = [reference.feeds for reference in item.references]
        #: The numbers of the last Graph.
        self.check = StageCheck(item, tolerance, graph)
        #: All facts known by now.
        self.facts = facts or QuantizationFacts()

    def run(self, pipeline: Iterable[Pass], progress: Progress = silent) -> Parting | None:
        """Where the numbers differ, or None."""
        try:
            self.check.exact(self._graph, "the trace")
        except OmniGraphError as error:
            return self._parting("the trace", None, error)
        for pass_ in pipeline:
            progress(pass_.name)
            if (found := self._after(pass_)) is not None:
                return found
        return None

    def _after(self, pass_: Pass) -> Parting | None:
        """Run one pass; where it makes the numbers differ, or None."""
        graph, before = self._graph, self._graph.clone()
        stage = f"pass {pass_.name!r}"
        try:
            record = self._run(pass_)
            check_graph(graph, pass_.name)
            if not record.modified:
                return None
            if pass_.rounds:
                self.check.rounded(before.clone(), graph, pass_, self.facts)
                if self._rounding is not None:
                    check_rounding(graph, self._item, self._rounding)
                    self._rounding = None
            else:
                self.check.exact(graph, stage)
        except OmniGraphError as error:
            if pass_.rounds:
                node = self._rounded_node(before, str(error))
                return Parting(self._item.name, stage, node, error=str(error))
            return self._parting(stage, self._exact_node(before), error)
        return None

    def _run(self, pass_: Pass) -> PassRecord:
        if self._calibrator is None:
            return run_passes(self._graph, (pass_,))[0]
        done = run_one(self._graph, pass_, self._calibrator, self.facts)
        self.facts, self._rounding = done.facts, done.rounding
        return done.records[0]

    def _parting(self, stage: str, node: str | None, error: OmniGraphError) -> Parting:
        """What is known of a stage that failed: the output that parts, or the error."""
        found = None
        try:
            outputs = self.check.run(self.check.compared(self._graph))
            found = parted_output(self._item, outputs, self.check)
        except OmniGraphError:
            pass  # the Graph does not run: the error says it
        if found is None:
            return Parting(self._item.name, stage, node, error=str(error))
        return Parting(self._item.name, stage, node, *found, self.check.tolerance)

    def _exact_node(self, before: Graph) -> str | None:
        """The first node that an exact pass changed: without rounding, or with it."""
        pairs = [(unrounded(before), unrounded(self._graph)), (before, self._graph)]
        return self._first(pairs, first_parted_node)

    def _rounded_node(self, before: Graph, error: str) -> str | None:
        """The node whose constant is not the rounded one, or whose result lost most by rounding."""
        if (named := _node_of_constant(self._graph, error)) is not None:
            return named
        stored = before.clone()
        known = {value.name for node in before.graph for value in node.outputs}
        substitute(stored, self._graph)
        for value in (value for node in stored.graph for value in node.outputs):
            if value.name not in known:  # the pass may have given this name to another
                value.name = f"{value.name}::stored"
        exact = [(unrounded(stored), unrounded(self._graph))]
        return self._first(exact, first_parted_node) or self._first(
            [(stored, self._graph)], most_parted_node
        )

    def _first(self, pairs: Iterable[tuple[Graph, Graph]], find: Find) -> str | None:
        for before, after in pairs:
            try:
                node = find(before, after, self._feeds, _of_one_node(self._item))
            except OmniGraphError:
                continue  # one of them does not run
            if node is not None:
                return describe(node)
        return None


def bisect_passes(
    graph: Graph, pipeline: Iterable[Pass], item: TracedProgram, tolerance: Tolerance
) -> Parting | None:
    """Run a pipeline without calibration pass by pass until the numbers differ too much.

    Args:
        graph: a Graph as traced; rewritten in place.
        pipeline: the passes to run.
        item: the program, with the outputs of the reference.
        tolerance: of computations that differ by the order of their sums.
    """
    return PassBisection(graph, item, tolerance).run(pipeline)


def bisect_artifact(
    graph: Graph, item: TracedProgram, job: TargetJob, options: ExportOptions, check: StageCheck
) -> Parting | None:
    """Compare the artifact of a lowered Graph with the Graph.

    To find the node, every value becomes an output. That may keep the compiler from the fusion that
    is at fault; then no node is named.

    Args:
        graph: the Graph after the target's pipeline.
        check: the numbers of the Graph.
    """
    lowered = Lowered(item.name, graph, item.inputs, item.outputs, item.dims, item.state)
    emit = Emitter(job.target, job.precision, job.settings, item.golden)
    stage = f"the artifact of {job.target.name!r}"
    found = None
    with tempfile.TemporaryDirectory() as scratch:
        emitted = emit.emit(lowered, Path(scratch))
        bounds = bounds_of(job, check, graph, options.rtol)
        try:
            check_artifact(
                Path(scratch),
                {item.name: item.references},
                {item.name: bounds},
                Openers(emitted.open, job.target.run_unrounded, job.target.constant_hashes),
            )
            return None
        except OmniGraphError as error:
            message = str(error)
        try:
            with job.target.run_unrounded(emitted.artifact, item.name) as run:
                outputs = [run(reference.feeds) for reference in item.references]
            found = parted_output(item, outputs, check)
        except OmniGraphError:
            pass  # it does not run: the message says so
    node = _artifact_node(emit, lowered, item)
    if found is None:
        return Parting(item.name, stage, node, error=message)
    return Parting(item.name, stage, node, *found, check.tolerance)


def _artifact_node(emit: Emitter, lowered: Lowered, item: TracedProgram) -> str | None:
    """The first node that an artifact computes otherwise from the same inputs of the node."""
    own = unrounded(lowered.graph)
    # What is quantized is not shown: its readers alone may have it.
    shown = showing_all(lowered.graph, {v.name or "" for v in showing_all(own).graph.outputs})
    outputs = tuple(TensorSpec(v.name or "", _name_of_type(v), ()) for v in shown.graph.outputs)
    whole = replace(lowered, graph=shown, outputs=outputs)
    tolerance = _of_one_node(item)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            artifact = emit.emit(whole, Path(scratch)).artifact
            with emit.target.run_unrounded(artifact, item.name) as run:
                return _first_unlike(own, run, item, tolerance)
    except OmniGraphError:
        return None  # the compiler does not take so many outputs; the stage is known anyway


def _name_of_type(value: ir.Value) -> str:
    """The type of an output; one that numpy does not have is widened where it is read."""
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    return dtype.name if dtype.type.__module__ == "numpy" else "float32"


def _first_unlike(graph: Graph, run: Run, item: TracedProgram, tolerance: Tolerance) -> str | None:
    nodes = None
    for reference in item.references:
        recorded = run(reference.feeds)
        nodes = nodes or NodeRunner(graph, set(recorded))
        computed = nodes.run(recorded, reference.feeds)
        for node, deviation in compared(graph, recorded, computed):
            if not deviation.within(tolerance):
                return describe(node)
    return None


def _of_one_node(item: TracedProgram) -> Tolerance:
    return Tolerance.for_precision("fp32", depth=_DEPTH, contraction=item.contraction)


def _stored_as(name: str) -> tuple[str, ...]:
    """How the name of a constant that is stored in fewer bits begins."""
    return tuple(f"{name}_{kind}" for kind in ("int", "uint", "float8"))


def _node_of_constant(graph: Graph, error: str) -> str | None:
    """The first node that reads a constant, or quantizes an activation, which an error names."""
    for name in re.findall(r"'([^']+)'", error):
        for node in graph.graph:
            for value in filter(None, node.inputs):
                stored = (value.name or "").startswith(_stored_as(name))
                constant = stored or (value.name == name and value.is_initializer())
                if constant or (value.name == name and node.op_type == "QuantizeLinear"):
                    return describe(node)
    return None
