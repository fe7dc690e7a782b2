"""Finds the first pass, then the first node, at which a program's numbers differ too much."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from omnigraph.contract.graph_check import (
    GraphRunner,
    check_graph,
    longest_contraction,
    rounded_activations,
    rounding_depth,
)
from omnigraph.contract.tolerance import Deviation, Tolerance, deviation, deviations, output_scales
from omnigraph.emitter import Emitter
from omnigraph.errors import OmniGraphError
from omnigraph.export_job import traced_program
from omnigraph.exporting.lower_program import float_tolerance
from omnigraph.exporting.options import OF_MODEL, ExportOptions
from omnigraph.exporting.plan import TargetJob, model_settings, plan_jobs
from omnigraph.exporting.program_choice import choose_programs
from omnigraph.frontends.resolve import ModelSource, resolve
from omnigraph.frontends.training_modes import TrainingModes
from omnigraph.graph import Graph, describe
from omnigraph.input_sets import contract_cases
from omnigraph.lowering import Lowered, Target
from omnigraph.passes.base import Pass, PassRecord, run_passes
from omnigraph.passes.calibrated_pass import QuantizationFacts, QuantizingPass
from omnigraph.program import Program, TensorSpec
from omnigraph.progress import Progress, silent
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.quantize import run_one
from omnigraph.quantization.samples import Samples, prepare
from omnigraph.tracing.names import output_specs
from omnigraph.tracing.trace import reference_for, trace_within_limits

Feeds = Mapping[str, np.ndarray]
#: Runs a program: feeds to outputs, both by name.
Run = Callable[[Feeds], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Parting:
    """Where the numbers of a program first differ too much from the reference.

    Args:
        stage: the pass, the trace, or the runtime of a target after which they do.
        node: the first node whose result this stage changed, with its module; None where no single
            node was found.
        output: the output of the program that is too far from the reference.
        case: the input set on which it is.
        error: the error that stopped the stage, such as an illegal Graph.
    """

    program: str
    stage: str
    node: str | None
    output: str | None = None
    case: str | None = None
    deviation: Deviation | None = None
    tolerance: Tolerance | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready fields, without unknown ones."""
        fields = {
            "program": self.program,
            "stage": self.stage,
            "node": self.node,
            "output": self.output,
            "case": self.case,
            "rms": self.deviation.rms if self.deviation else None,
            "peak": self.deviation.peak if self.deviation else None,
            "tolerance": self.tolerance.to_dict() if self.tolerance else None,
            "error": self.error,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        text = f"program {self.program!r}: the numbers part at {self.stage}"
        if self.error is not None:
            return f"{text}, which failed: {self.error}"
        text += f", first at {self.node}" if self.node else ", but no single node was found"
        if self.deviation is not None and self.tolerance is not None:
            text += (
                f"; output {self.output!r} on input set {self.case!r} is at "
                f"{self.deviation.rms:.2e} rms, and {self.tolerance.rms:.2e} is allowed"
            )
        return text


@dataclass(frozen=True)
class InputSet:
    """One input set with the reference's outputs for it."""

    case: str
    feeds: Feeds
    outputs: Feeds


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
        target: whose pipeline and runtime to run.
        options: as for ``export``.
        until: the stage to stop after; None goes on to the runtime.
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
        prepared = prepare(asked.quantizing, programs)
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
    to_the_runtime: bool

    def run(
        self, program: Program, facts: QuantizationFacts
    ) -> tuple[Parting | None, QuantizationFacts]:
        """Where the numbers of one program differ, and all facts known then."""
        program, graph = trace_within_limits(program)
        references = [reference_for(program, case) for case in contract_cases(program)]
        references.append(references[0])
        outputs = output_specs(graph)
        item = traced_program(program, graph, outputs, program.state, references)
        sets = [InputSet(r.case.name, r.feeds, r.outputs) for r in item.references]

        def report(stage: str) -> None:
            self.progress(f"{program.name}: {stage}")

        calibrator = None
        if self.samples is not None:
            calibrator = Calibrator(self.options.quantizing, self.samples, item, self.progress)
        tolerance = float_tolerance(self.job, item, self.options)
        passes = PassBisection(graph, sets, tolerance, calibrator, facts, report)
        found = passes.run(self.job.pipeline)
        target = self.job.target
        if found is None and self.to_the_runtime and target.unrunnable() is None:
            report(f"runtime of {target.name}")
            lowered = Lowered(
                program.name, graph, program.inputs, outputs, program.dims, program.state
            )
            emit = Emitter(target, self.job.precision, self.job.settings, item.golden)
            found = bisect_runtime(graph, target, lowered, sets, passes.tolerance, emit.run)
        return found, passes.facts


class PassBisection:
    """Runs a pipeline pass by pass until the numbers differ too much.

    Args:
        graph: a Graph as traced; rewritten in place.
        sets: input sets with the outputs of the reference.
        tolerance: from the first pass that rounds; before it, that of fp32 holds.
        calibrator: gathers facts for passes that need them; None where nothing is quantized.
        facts: known so far.
        progress: called with each stage before it is compared.
    """

    def __init__(
        self,
        graph: Graph,
        sets: Sequence[InputSet],
        tolerance: Tolerance,
        calibrator: Calibrator | None = None,
        facts: QuantizationFacts | None = None,
        progress: Progress = silent,
    ) -> None:
        self._graph, self._sets, self._progress = graph, sets, progress
        self._program = graph.graph.name or "graph"
        self._calibrator = calibrator
        self._exact = Tolerance.for_precision(
            "fp32", depth=rounding_depth(graph), contraction=longest_contraction(graph)
        ).with_rounded_activations(rounded_activations(graph))
        self._has_rounded = False
        #: The tolerance after a pass has rounded; quantization widens it.
        self.tolerance = tolerance
        #: All facts known by now.
        self.facts = facts or QuantizationFacts()

    def run(self, pipeline: Iterable[Pass]) -> Parting | None:
        """Where the numbers differ, or None."""
        self._progress("trace")
        run = GraphRunner(self._graph).run
        found = _compare(self._program, "the trace", run, self._sets, self._exact)
        for pass_ in pipeline:
            if found is not None:
                break
            self._progress(pass_.name)
            found = self._after(pass_)
        return found

    def _after(self, pass_: Pass) -> Parting | None:
        """Run one pass; where it makes the numbers differ, or None."""
        graph, before = self._graph, self._graph.clone()
        stage = f"pass {pass_.name!r}"
        try:
            record = self._run(pass_)
            check_graph(graph, pass_.name)
            run = GraphRunner(graph).run
        except OmniGraphError as error:
            return Parting(self._program, stage, None, error=str(error))
        self._has_rounded |= pass_.rounds
        # `run_one` compares the quantized Graph, with the expected noise.
        if isinstance(pass_, QuantizingPass) or not record.modified:
            return None
        tolerance = self.tolerance if self._has_rounded else self._exact
        found = _compare(self._program, stage, run, self._sets, tolerance)
        if found is None:
            return None
        feeds = next(s.feeds for s in self._sets if s.case == found.case)
        node = first_parted_node(graph, _all_values(before), _all_values(graph), feeds, tolerance)
        return replace(found, node=node)

    def _run(self, pass_: Pass) -> PassRecord:
        if self._calibrator is None:
            return run_passes(self._graph, (pass_,))[0]
        done = run_one(self._graph, pass_, self._calibrator, self.facts)
        self.facts = done.facts
        if done.rounding is not None:
            self.tolerance = done.rounding.tolerance(self.tolerance)
        return done.records[0]


def bisect_passes(
    graph: Graph,
    pipeline: Iterable[Pass],
    sets: Sequence[InputSet],
    tolerance: Tolerance,
    *,
    progress: Progress = silent,
) -> Parting | None:
    """Run a pipeline without calibration pass by pass until the numbers differ too much.

    Args:
        graph: a Graph as traced; rewritten in place.
        pipeline: the passes to run.
        sets: input sets with the outputs of the reference.
        tolerance: from the first pass that rounds; before it, that of fp32 holds.
        progress: called with each stage before it is compared.
    """
    return PassBisection(graph, sets, tolerance, progress=progress).run(pipeline)


def bisect_runtime(
    graph: Graph,
    target: Target,
    lowered: Lowered,
    sets: Sequence[InputSet],
    tolerance: Tolerance,
    run_emitted: Callable[[Lowered, Path], Run],
) -> Parting | None:
    """Compare a lowered Graph, as its vendor's runtime computes it, with the reference.

    To find the node, every value becomes an output. That may keep the runtime from the fusion that
    computed wrongly; then no node is named.

    Args:
        graph: the Graph after the target's pipeline.
        run_emitted: emits a program into an empty folder, and returns the function that runs it.
    """
    program = lowered.name
    stage = f"the runtime of {target.name!r}"
    with tempfile.TemporaryDirectory() as scratch:
        run = run_emitted(lowered, Path(scratch))
        found = _compare(program, stage, run, sets, tolerance)
    if found is None:
        return None
    feeds = next(s.feeds for s in sets if s.case == found.case)
    shown = _showing_all(graph)
    outputs = tuple(
        TensorSpec(v.name or "", v.dtype.numpy().name if v.dtype else "float32", ())
        for v in shown.graph.outputs
    )
    node = None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            whole = Lowered(
                program, shown.clone(), lowered.inputs, outputs, lowered.dims, lowered.state
            )
            node = first_parted_node(
                graph, GraphRunner(shown).run, run_emitted(whole, Path(scratch)), feeds, tolerance
            )
    except OmniGraphError:
        pass  # the runtime does not take so many outputs; the stage is known anyway
    return Parting(program, stage, node, found.output, found.case, found.deviation, tolerance)


def first_parted_node(
    graph: Graph, before: Run, after: Run, feeds: Feeds, tolerance: Tolerance
) -> str | None:
    """The first node of a Graph whose value differs from the value of the same name before.

    Nodes with only new values are skipped: the result is the first node that shows the change.
    """
    one, other = before(feeds), after(feeds)
    for node in graph.graph:
        for value in node.outputs:
            name = value.name or ""
            if name not in one or name not in other:
                continue
            if not deviation(other[name], one[name]).within(tolerance):
                return describe(node)
    return None


def _compare(
    program: str, stage: str, run: Run, sets: Iterable[InputSet], tolerance: Tolerance
) -> Parting | None:
    sets = list(sets)
    scales = output_scales([s.outputs for s in sets])
    for given in sets:
        try:
            results = run(given.feeds)
        except OmniGraphError as error:
            return Parting(program, stage, None, case=given.case, error=str(error))
        for output, found in deviations(results, given.outputs, scales).items():
            if not found.within(tolerance):
                return Parting(program, stage, None, output, given.case, found, tolerance)
    return None


def _all_values(graph: Graph) -> Run:
    return GraphRunner(_showing_all(graph)).run


def _showing_all(graph: Graph) -> Graph:
    """A copy of a Graph that outputs the results of all nodes with a known type.

    Nodes of subgraphs are left out. Weights are not copied.
    """
    shown = graph.clone()
    taken = set(shown.graph.outputs)
    numbers = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.STRING}
    for node in shown.graph:
        for value in node.outputs:
            known = value.dtype is not None and int(value.dtype) in numbers
            if value.name and known and value not in taken:
                shown.graph.outputs.append(value)
    return shown
