"""Bisect: the first pass, then the first node, at which the numbers of a program part."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Deviation, Tolerance, deviation, deviations, output_scales
from omnigraph.emitter import Emitter
from omnigraph.errors import OmniGraphError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph, describe
from omnigraph.lowering import Lowered, Target, find_target
from omnigraph.passes.analysis.quantization.scheme import QUANTIZED
from omnigraph.passes.base import Pass, run_passes
from omnigraph.program import Dim, Program, TensorSpec, contract_cases
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.quantizer import Quantized, Quantizer, is_quantizing
from omnigraph.tracing.names import output_specs

Feeds = Mapping[str, np.ndarray]
#: What runs a program: feeds to outputs, both by name.
Run = Callable[[Feeds], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Parting:
    """Where the numbers of a program part from the reference.

    Args:
        stage: the pass, "trace", or "runtime of" a target, after which they first do.
        node: the first node whose result is another than before that stage, with its module; None
            where no single node could be told.
        output: the output of the program that is too far from the reference.
        case: the input set on which it is.
        error: what stopped the stage, where it was no number: an illegal Graph, say.
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
        """The finding as JSON-ready fields; what is not known is left out."""
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
        text += f", first at {self.node}" if self.node else ", at no single node that could be told"
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
    *,
    precision: str | None = None,
    config: str | None = None,
    settings: Mapping[str, str] | None = None,
    programs: Sequence[str] | None = None,
    dynamic: Mapping[str, Dim] | None = None,
    passes: str = "",
    quantization: Quantization | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Parting]:
    """Find where the numbers of each program of a model first part from the reference.

    Args:
        model, config, settings, programs, dynamic: as for ``export``.
        target: whose pipeline and runtime to look at.
        precision: one of the target's; None is its first.
        passes: edits of the pipeline, as for ``export``.
        quantization: how to quantize, as for ``export``.
        progress: told of each stage.

    Returns:
        One finding for each program whose numbers part; none where all are within the contract.

    Raises:
        OmniGraphError: the model cannot be traced, or the target cannot do what is asked.
    """
    from omnigraph.driver import choose_programs
    from omnigraph.frontends.resolve import resolve
    from omnigraph.tracing.trace import reference_for, trace

    chosen = find_target(target)
    precision = precision or chosen.precisions[0]
    chosen.check_precision(precision)
    settings = dict(settings or {})
    options = {key: settings.pop(key) for key in chosen.options if key in settings}
    pipeline = chosen.passes(precision, passes)
    source = resolve(model, config=config, settings=settings)
    partings = []
    chosen_programs = choose_programs(source, programs, dynamic or {})
    quantizer = None
    if precision in QUANTIZED:
        quantizer = Quantizer(quantization or Quantization(), chosen_programs, progress)
        chosen_programs = quantizer.take_programs()
    for program in chosen_programs:
        graph = trace(program)
        references = [reference_for(program, case) for case in contract_cases(program)]
        sets = [InputSet(r.case.name, r.feeds, r.outputs) for r in references]
        tolerance = Tolerance.for_precision(
            chosen.rounding(precision),
            depth=rounding_depth(graph),
            contraction=longest_contraction(graph),
        ).with_codes(rounded_activations(graph))
        outputs = output_specs(graph)

        def told(stage: str, name: str = program.name) -> None:
            progress(f"{name}: {stage}")

        steps: Iterable[Pass] = pipeline
        allowed = [tolerance]
        if quantizer is not None:
            item = _traced(program, graph, references, outputs)
            floats = Tolerance.for_precision(
                chosen.rounding(precision), depth=item.depth, contraction=item.contraction
            )

            def quantized(
                done: Quantized,
                allowed: list[Tolerance] = allowed,
                floats: Tolerance = floats,
            ) -> None:
                allowed[:] = [done.tolerance(floats)]

            steps = quantizer.passes(pipeline, graph, item, quantized)

        def tolerated(allowed: list[Tolerance] = allowed) -> Tolerance:
            return allowed[0]

        found = bisect_passes(graph, steps, sets, tolerated, told=told)
        (tolerance,) = allowed
        if found is None and chosen.unrunnable() is None:
            told(f"runtime of {chosen.name}")
            lowered = Lowered(
                program.name, graph, program.inputs, outputs, program.dims, program.state
            )
            emit = Emitter(chosen, precision, options, references[0])
            found = bisect_runtime(graph, chosen, lowered, sets, tolerance, emit.run)
        if found is not None:
            partings.append(found)
    return partings


def _traced(
    program: Program, graph: Graph, references: list[Reference], outputs: tuple[TensorSpec, ...]
) -> TracedProgram:
    """A program as an export has it after tracing."""
    return TracedProgram(
        program.name,
        program.inputs,
        outputs,
        program.dims,
        program.state,
        references,
        references[0],
        rounding_depth(graph),
        longest_contraction(graph),
        graph,
    )


def bisect_passes(
    graph: Graph,
    pipeline: Iterable[Pass],
    sets: Sequence[InputSet],
    rounded: Tolerance | Callable[[], Tolerance],
    *,
    told: Callable[[str], None] = lambda _: None,
) -> Parting | None:
    """Run a pipeline pass by pass until the numbers part.

    Args:
        graph: a Graph as traced; it is rewritten in place.
        pipeline: the passes to run.
        sets: input sets with the outputs of the reference.
        rounded: the tolerance from the first pass on that rounds; before it, that of fp32. A
            callable where it is known only when a pass has run.
        told: told the name of each stage before it is compared.

    Returns:
        Where the numbers part, or None.
    """
    program = graph.graph.name or "graph"
    exact = Tolerance.for_precision(
        "fp32", depth=rounding_depth(graph), contraction=longest_contraction(graph)
    ).with_codes(rounded_activations(graph))
    rounds = False
    told("trace")
    if (found := _compare(program, "the trace", GraphRunner(graph).run, sets, exact)) is not None:
        return found
    steps, stage = iter(pipeline), "the trace"
    while True:
        try:
            pass_ = next(steps, None)
        except OmniGraphError as error:  # what looks after the pass before refused its Graph
            return Parting(program, stage, None, error=str(error))
        if pass_ is None:
            return None
        told(pass_.name)
        before = graph.clone()
        stage = f"pass {pass_.name!r}"
        try:
            (record,) = run_passes(graph, (pass_,))
            check_graph(graph, pass_.name)
            run = GraphRunner(graph).run
        except OmniGraphError as error:
            return Parting(program, stage, None, error=str(error))
        if is_quantizing(pass_) and pass_.rounds:
            rounds = True
            continue  # the Quantizer compares it, by the noise that it foresees
        rounds |= pass_.rounds
        tolerance = (rounded() if callable(rounded) else rounded) if rounds else exact
        if not record.modified:
            continue
        found = _compare(program, stage, run, sets, tolerance)
        if found is None:
            continue
        feeds = next(s.feeds for s in sets if s.case == found.case)
        node = first_parted_node(graph, _all_values(before), _all_values(graph), feeds, tolerance)
        return Parting(program, stage, node, found.output, found.case, found.deviation, tolerance)


def bisect_runtime(
    graph: Graph,
    target: Target,
    lowered: Lowered,
    sets: Sequence[InputSet],
    tolerance: Tolerance,
    run_emitted: Callable[[Lowered, Path], Run],
) -> Parting | None:
    """Compare a lowered Graph, as its vendor's runtime computes it, with the reference.

    To find the node, every value becomes an output, which may keep the runtime from fusing what
    it computed wrongly; no node is named then.

    Args:
        graph: the Graph after the target's pipeline.
        run_emitted: emits a program into an empty folder, and gives what runs it.
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
        pass  # the runtime does not take so many outputs; the stage is known all the same
    return Parting(program, stage, node, found.output, found.case, found.deviation, tolerance)


def first_parted_node(
    graph: Graph, before: Run, after: Run, feeds: Feeds, tolerance: Tolerance
) -> str | None:
    """The first node of a Graph that gives other numbers than the same value had before.

    Values are the same by name; a node that only makes new values is passed over, so what is named
    is the first node by which the change can be seen.
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
    """A copy of a Graph whose outputs are the results of all its nodes, where their type is known.

    Those of subgraphs stay inside. Weights are not copied.
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
