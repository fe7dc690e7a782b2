"""Exports with a fault in them: what the contract says, and what ``bisect`` names."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.faults.fault import Fault, Place
from benchmarks.faults.models import traced
from omnigraph.contract.comparison import NumberCheck
from omnigraph.driver import export
from omnigraph.errors import OmniGraphError
from omnigraph.exporting.options import ExportOptions
from omnigraph.graph import Graph
from omnigraph.inspection.bisect import bisect
from omnigraph.inspection.parting import Parting
from omnigraph.lowering import Emission, Lowered, Target, find_target
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.passes.base import Finding, Pass, run_passes
from omnigraph.passes.pipeline import STAGES, Pipeline
from omnigraph.precision import PRECISIONS
from omnigraph.program import Program
from omnigraph.quantization.options import Quantization

SAMPLES = 16


@dataclass
class Planted:
    """What came of one fault: whether it had a place, and the Graphs before and after it."""

    fault: Fault
    time: str
    place: Place | None = None
    before: Graph | None = None
    after: Graph | None = None

    def into(self, graph: Graph) -> bool:
        """Plant the fault; whether there is a place for it."""
        self.place = self.fault.place(graph)
        if self.place is None:
            return False
        self.before = graph.clone()
        self.place.plant()
        self.after = graph.clone()
        return True


@dataclass(frozen=True)
class PlantFault(Pass):
    """A pass that claims to be exact and is not."""

    planted: Planted | None = field(default=None, compare=False)

    def apply(self, graph: Graph) -> bool:
        """Plant the fault."""
        assert self.planted is not None
        return self.planted.into(graph)


class _Probe(Planted):
    """Plants nothing, and keeps the Graph as it is then."""

    def __init__(self, time: str) -> None:
        super().__init__(Fault("", lambda _: ()), time)

    def into(self, graph: Graph) -> bool:
        """Keep a copy of the Graph."""
        self.before = graph.clone()
        return False


class NoPlaceError(Exception):
    """The Graph has no place for a fault."""


def wrong_target(name: str, planted: Planted) -> Target:
    """A target that plants a fault in its pipeline, or in the files that it writes."""
    kind = type(find_target(name))

    class Wrong(lowered_alone(kind)):  # type: ignore[misc]
        def passes(self, *given: Any, **options: Any) -> Pipeline:
            return _planted_pipeline(super().passes(*given, **options), planted)

        def emit(self, programs: Sequence[Lowered], *given: Any, **options: Any) -> Emission:
            if planted.time == "artifact":
                programs = [replace(p, graph=p.graph.clone()) for p in programs]
                for program in programs:
                    planted.into(program.graph)
            return super().emit(programs, *given, **options)

    return Wrong()


def lowered_alone(kind: type[Target]) -> type[Target]:
    """A target whose artifact runs here: for TensorRT, the ONNX that its compiler reads."""
    if kind.name != "tensorrt":
        return kind

    class LoweredAlone(kind):  # type: ignore[misc, valid-type]
        def emit(self, programs: Sequence[Lowered], directory: Path, **_: Any) -> Emission:
            written = write_onnx(programs, directory)
            files = {name: {**roles, "lowered": roles["model"]} for name, roles in written.items()}
            return Emission(files=files, device="cuda", requires={}, executes_here=False)

    return LoweredAlone


def _planted_pipeline(pipeline: Pipeline, planted: Planted) -> Pipeline:
    """The pipeline with a fault; the stages before it are left out where their result is known."""
    if planted.time not in ("trace", "folded"):
        pipeline = replace(pipeline, canonical=(), fused=(), folded=())
    stage = {"passes": "folded", "lowering": "kernels"}.get(planted.time)
    if stage is not None:
        return replace(pipeline, **{stage: (*getattr(pipeline, stage), PlantFault(planted))})
    if planted.time != "rounding":
        return pipeline
    rounding = [
        (name, place)
        for name in STAGES
        for place, pass_ in enumerate(getattr(pipeline, name))
        if pass_.rounds
    ]
    if not rounding:
        raise NoPlaceError
    quantizing = [found for found in rounding if found[0] == "quantized"]
    name, place = (quantizing or rounding)[-1]
    passes = list(getattr(pipeline, name))
    passes[place] = _wrong_pass(passes[place], planted)
    return replace(pipeline, **{name: tuple(passes)})


def _wrong_pass(pass_: Pass, planted: Planted) -> Pass:
    """A pass that rounds as its own class does, and plants a fault."""
    kind = type(pass_)

    class Wrong(kind):  # type: ignore[misc, valid-type]
        def run(self, graph: Graph) -> tuple[bool, tuple[Finding, ...]]:
            modified, findings = super().run(graph)
            return planted.into(graph) or modified, findings

    Wrong.__name__ = kind.__name__
    return Wrong(**pass_.options)


@dataclass(frozen=True)
class Outcome:
    """What the contract and ``bisect`` say of a planted fault.

    Args:
        error: of the export; None where it was not found.
        partings: of ``bisect``.
        checks: of the artifact, where it was written.
    """

    fault: Fault
    time: str
    model: str
    target: str
    precision: str
    planted: Planted
    error: str | None
    partings: tuple[Parting, ...] = ()
    checks: tuple[NumberCheck, ...] = ()

    @property
    def named(self) -> bool:
        """Whether ``bisect`` names the stage, and a node in the module of the fault."""
        place, found = self.planted.place, next(iter(self.partings), None)
        if place is None or found is None:
            return False
        right = {
            "trace": "trace",
            "passes": "'plant-fault'",
            "lowering": "'plant-fault'",
            "rounding": "pass '",
            "artifact": self.target,
        }[self.time]
        if right not in found.stage:
            return False
        said = found.node or found.error or ""
        if place.name in said:
            return True
        modules = re.findall(r"module '([^']*)'", said)
        # A wrong trace is named by the first module that gives something wrong: where the fault is,
        # or a module inside, which reads it.
        inside = tuple(f"{module}." for module in place.modules if self.time == "trace")
        return any(m in place.modules or m.startswith(inside) for m in modules)


@contextmanager
def instead_of(target: Target) -> Iterator[None]:
    with patch("omnigraph.exporting.plan.find_target", lambda name: target):
        yield


def options_for(precision: str) -> ExportOptions:
    """The options of each export."""
    quantizes = PRECISIONS[precision].quantizes
    return ExportOptions(
        precision=precision, quantization=Quantization(samples=SAMPLES) if quantizes else None
    )


@cache
def folded(model: str, target: str) -> Graph:
    """The Graph of a model after the passes that claim equality."""
    _, graph = traced(model)
    graph = graph.clone()
    found = find_target(target)
    run_passes(graph, found.passes(found.precisions[0]).until("folded"))
    return graph


def program_with(model: str, planted: Planted | None, target: str) -> Program:
    """A model's program that is traced already, with a fault in the trace where that is asked.

    A fault that comes after the passes that fuse gets the Graph that they left: they need not run
    again for each fault.
    """
    program, graph = traced(model)
    if planted is not None and planted.time not in ("trace", "folded"):
        graph = folded(model, target)

    def to_graph(_: Program) -> Graph:
        copy = graph.clone()
        if planted is not None and planted.time == "trace" and not planted.into(copy):
            raise NoPlaceError
        return copy

    return replace(program, to_graph=to_graph)


def try_fault(
    fault: Fault, time: str, model: str, target: str, precision: str, *, bisecting: bool = True
) -> Outcome | None:
    """Export a model with a fault in it; None where there is no place for the fault."""
    planted = Planted(fault, time)
    try:
        wrong = wrong_target(target, planted)
        error, checks = _export(wrong, planted, model, precision)
    except NoPlaceError:
        return None
    if planted.place is None:
        return None
    partings: tuple[Parting, ...] = ()
    if bisecting and error is not None:
        partings = _bisect(wrong, planted, model, precision)
    return Outcome(fault, time, model, target, precision, planted, error, partings, checks)


@cache
def graphs_at(model: str, target: str, precision: str) -> Mapping[str, Graph]:
    """The right Graphs at the times of faults; none for rounding where nothing is rounded."""
    probes = [_Probe("rounding"), _Probe("lowering")]

    class Probing(lowered_alone(type(find_target(target)))):  # type: ignore[misc]
        def passes(self, *given: Any, **options: Any) -> Pipeline:
            pipeline = super().passes(*given, **options)
            for probe in probes:
                with suppress(NoPlaceError):
                    pipeline = _planted_pipeline(pipeline, probe)
            return pipeline

    _export(Probing(), probes[0], model, precision)
    found = {"trace": traced(model)[1], "passes": folded(model, target)}
    found |= {probe.time: probe.before for probe in probes if probe.before is not None}
    return {**found, "artifact": found["lowering"]}


def has_place(fault: Fault, time: str, model: str, target: str, precision: str) -> bool:
    """Whether a fault can be planted."""
    graph = graphs_at(model, target, precision).get(time)
    return graph is not None and fault.place(graph.clone()) is not None


def honest(model: str, target: str, precision: str) -> tuple[str | None, tuple[NumberCheck, ...]]:
    """An export without a fault: its error, if any, and how far its outputs are from torch."""
    kind = lowered_alone(type(find_target(target)))
    return _export(kind(), None, model, precision)


def _export(
    target: Target, planted: Planted | None, model: str, precision: str
) -> tuple[str | None, tuple[NumberCheck, ...]]:
    program = program_with(model, planted, target.name)
    with tempfile.TemporaryDirectory() as scratch, instead_of(target):
        try:
            (report,) = export(
                [program], target.name, options_for(precision), out=Path(scratch) / "artifact"
            )
        except OmniGraphError as error:
            return f"{type(error).__name__}: {error}", ()
    return None, tuple(report.checks)


def _bisect(target: Target, planted: Planted, model: str, precision: str) -> tuple[Parting, ...]:
    with instead_of(target):
        try:
            return tuple(
                bisect(
                    [program_with(model, planted, target.name)], target.name, options_for(precision)
                )
            )
        except NoPlaceError:
            return ()
