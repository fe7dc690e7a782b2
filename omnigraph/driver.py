"""From a model to an artifact: trace, passes, lowering, contract; all of it or nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnigraph.artifact import check_replaceable, publish, seal, staging
from omnigraph.contract.comparison import NumberCheck, check_artifact
from omnigraph.contract.external_weights import release_memory
from omnigraph.contract.graph_check import (
    check_graph,
    compare_graph,
    longest_contraction,
    rounded_activations,
    rounding_depth,
)
from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.errors import UsageError
from omnigraph.export_job import TargetProduct, TracedProgram
from omnigraph.frontends.resolve import ModelSource, resolve
from omnigraph.graph import Graph, count_ops
from omnigraph.head_variants.variants import make_variants, parse_variants
from omnigraph.ledger.attention import AttentionSite, attention_sites, check_fused
from omnigraph.ledger.graph_text import graph_text
from omnigraph.ledger.precision import LayerPrecision, layer_precisions
from omnigraph.lowering import Lowered, Target, find_target
from omnigraph.manifest import build_manifest, golden_name, write_golden
from omnigraph.output_choice import OutputChoice
from omnigraph.passes.analysis.quantization.scheme import QUANTIZED
from omnigraph.passes.base import Observer, Pass, PassRecord, run_passes
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.program import Case, Dim, Program, contract_cases, fit_sizes
from omnigraph.quantization.budget import AUTO, CARRIER, plan_fields
from omnigraph.quantization.kv_cache import check_cache_type, quantize_caches
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.quantizer import Quantized, Quantizer
from omnigraph.quantization.real_inputs import with_real_inputs
from omnigraph.quantization.search import search
from omnigraph.tracing.trace import check_trace, output_specs, reference_for, trace

#: Told of each step: what is being done, and which of how many steps it is.
Progress = Callable[[str, int, int], None]

_GOLDEN = {"batch": 2, "sequence": 5, "past": 3, "decoder_sequence": 4}


@dataclass(frozen=True)
class ExportReport:
    """What an export to one target made, how long each step took, and how close its numbers are."""

    path: Path
    target: str
    precision: str
    bytes: int
    seconds: Mapping[str, float]
    checks: Sequence[NumberCheck]
    passes: Mapping[str, Sequence[PassRecord]]
    ledger: Mapping[str, Sequence[AttentionSite]]
    layers: Mapping[str, Sequence[LayerPrecision]] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)

    @property
    def deviation(self) -> Deviation:
        """The worst deviation from torch over every program, output and input set."""
        worst = Deviation(0.0, 0.0)
        for check in self.checks:
            worst = worst.worst(check.deviation)
        return worst

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready fields."""
        return {
            "path": str(self.path),
            "target": self.target,
            "precision": self.precision,
            "bytes": self.bytes,
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "contract": [check.to_dict() for check in self.checks],
            "attention": {
                name: [site.to_dict() for site in sites] for name, sites in self.ledger.items()
            },
            "layers": {name: [row.to_dict() for row in rows] for name, rows in self.layers.items()},
            "quantization": dict(self.quantization),
        }


def export(
    model: object,
    target: str | Sequence[str],
    *,
    precision: str | None = None,
    config: str | None = None,
    settings: Mapping[str, str] | None = None,
    inputs: Mapping[str, Any] | None = None,
    programs: Sequence[str] | None = None,
    dynamic: Mapping[str, Dim] | None = None,
    outputs: Sequence[str] = (),
    last: Sequence[str] = (),
    out: str | os.PathLike[str] | None = None,
    rtol: float | None = None,
    passes: str = "",
    require_fused: bool = False,
    verify_each: bool = False,
    variants: str | None = None,
    importance: str | None = None,
    calibration: object | None = None,
    quantization: Quantization | None = None,
    kv_cache: str | None = None,
    progress: Progress | None = None,
) -> list[ExportReport]:
    """Compile a model for one or more targets and check every program's numbers against torch.

    Args:
        model: "omninet", "file.py:factory", "package.module:factory", a ``torch.nn.Module`` (with
            ``inputs``), or Programs.
        target: one target, several in a sequence, or several joined by commas.
        precision: one that each target can do, or "auto", which chooses layer by layer the fastest
            that keeps within a loss of accuracy; None is each target's own first.
        config: the size of "omninet": tiny, small or seed (the default).
        settings: fields of the model's configuration and options of the targets, as text.
        inputs: example inputs by name, where ``model`` is a module.
        programs: which programs to compile; None is all.
        dynamic: the range of each dimension; one size (``Dim(1, 1)``) makes it fixed.
        outputs: which outputs to compute; none given is all, and a program that has none of those
            given keeps its own.
        last: outputs of which only the position of the last token is computed, such as "logits".
        out: the artifact's path, a single file if it ends in ``.omni``, else a directory; with
            several targets, the directory that gets one artifact each.
        rtol: a root-mean-square tolerance in place of the one reasoned from the precision.
        passes: edits of each target's pipeline, joined by commas: "-name" leaves a pass out, "name"
            or "name:option=value" adds it, or replaces it where it is already.
        require_fused: refuse a program with an attention that is not one node.
        verify_each: compare the numbers after every single pass, too.
        variants: "heads=12,8" adds, for each program, one with 12 heads an attention and one with
            8, which a Session may choose for a request (`omnigraph.head_variants.variants`).
        importance: a JSON or ``.npz`` file with the importance of each head, for ``variants``.
        calibration: DATA to quantize by, as `omnigraph.quantization.data` reads it.
        quantization: everything else about how to quantize; ``calibration`` is a part of it.
        kv_cache: "int8" keeps keys and values in eight bits from call to call, with a scale for
            each head; None keeps them as the model has them.
        progress: told of each step.

    Returns:
        One report for each target, in order.

    Raises:
        OmniGraphError: whatever is wrong; nothing is written then, for any target.
    """
    names = target.split(",") if isinstance(target, str) else list(target)
    targets = [find_target(name.strip()) for name in names]
    keeps = parse_variants(variants, importance)
    settings = dict(settings or {})
    options = [{k: settings[k] for k in settings if k in t.options} for t in targets]
    used = {key for chosen in options for key in chosen}
    for chosen, given in zip(targets, options, strict=True):
        _check_target(chosen, precision, given)
    asked = [precision or chosen.precisions[0] for chosen in targets]
    precisions = [CARRIER if name == AUTO else name for name in asked]
    pipelines = [t.passes(p, passes) for t, p in zip(targets, precisions, strict=True)]
    choice = OutputChoice(tuple(outputs), tuple(last))
    wanted = quantization or Quantization()
    if calibration is not None:
        wanted = replace(wanted, calibration=calibration)
    wanted.check(precisions)
    check_cache_type(kv_cache)
    job = _Export(progress, verify_each, require_fused, rtol, choice, total=2 + 3 * len(targets))

    with job.step("model"):
        source = resolve(
            model,
            config=config,
            settings={k: v for k, v in settings.items() if k not in used},
            inputs=inputs,
        )
        source = replace(source, programs=choose_programs(source, programs, dynamic or {}))
        choice.check({program.name: program.outputs for program in source.programs})
        if any(p in QUANTIZED for p in precisions):
            job.quantizer = Quantizer(wanted, source.programs, job.tell)
            source = replace(source, programs=job.quantizer.take_programs())
        elif kv_cache is not None:
            source = replace(source, programs=with_real_inputs(source.programs))
        job.cache_type = kv_cache
    paths = _paths(source.name, targets, asked, out)
    for path in paths:
        check_replaceable(path)
    traced, made = job.trace(source), None
    if keeps:
        made = make_variants(source.programs, traced, keeps, importance)
        traced += made.programs
    config_fields, name, source = source.config, source.name, replace(source, programs=())

    with ExitStack() as stack:
        staged = [stack.enter_context(staging(path)) for path in paths]
        built = []
        for position, item in enumerate(
            zip(targets, precisions, pipelines, options, staged, strict=True)
        ):
            job.choose(asked[position], *item[:4], traced)
            built.append(job.build(*item, traced, last=position == len(targets) - 1))
        release_memory()  # torch's weights are not needed from here on
        reports = []
        for chosen, directory, path, product in zip(targets, staged, paths, built, strict=True):
            manifest = build_manifest(name, config_fields, chosen, product, traced)
            if made is not None:
                manifest["variants"] = made.manifest
            checks = job.check(chosen, directory, manifest, product, traced)
            reports.append((chosen, directory, path, product, checks))
        done = []
        for chosen, directory, path, product, checks in reports:
            size = sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())
            publish(directory, path)
            done.append(
                ExportReport(
                    path,
                    chosen.name,
                    product.precision,
                    size,
                    {**job.seconds, **product.seconds},
                    checks,
                    product.records,
                    product.ledger,
                    product.layers,
                    product.quantization,
                )
            )
        if job.quantizer is not None:
            job.quantizer.save()
    return done


class _Export:
    """The steps of one export: their progress and their times."""

    def __init__(
        self,
        progress: Progress | None,
        verify_each: bool,
        require_fused: bool,
        rtol: float | None,
        choice: OutputChoice,
        *,
        total: int,
    ) -> None:
        self.seconds: dict[str, float] = {}
        self._choice = choice
        self._require_fused = require_fused
        self._progress, self._verify_each, self._rtol = progress, verify_each, rtol
        self._done, self._total = 0, total
        self.quantizer: Quantizer | None = None
        self.cache_type: str | None = None

    def tell(self, name: str) -> None:
        """Say what is being done within a step."""
        if self._progress is not None:
            self._progress(name, self._done, self._total)

    @contextmanager
    def step(self, name: str, seconds: dict[str, float] | None = None) -> Iterator[None]:
        self.tell(name)
        start = time.perf_counter()
        yield
        self._done += 1
        key = name.split(" ", 1)[0]
        (self.seconds if seconds is None else seconds)[key] = time.perf_counter() - start
        if self._progress is not None and self._done == self._total:
            self._progress("done", self._done, self._total)

    def trace(self, source: ModelSource) -> list[TracedProgram]:
        names = ", ".join(program.name for program in source.programs)
        with self.step(f"trace {names}"):
            return [self._trace(program) for program in source.programs]

    def _trace(self, program: Program) -> TracedProgram:
        graph = trace(program)
        check_graph(graph, "trace")
        cases = contract_cases(program)
        references = [reference_for(program, case) for case in cases]
        # The other sets differ from these only in padding and batch; all are in the contract.
        sizes = [r for r in references if r.case.name in ("short", "long", "padded-left")]
        check_trace(program, graph, sizes)
        golden_case = Case("golden", fit_sizes(program, _GOLDEN), "left", seed=len(cases))
        references.append(reference_for(program, golden_case))
        outputs = output_specs(graph)
        *references, golden = self._choice.apply(graph, program.inputs, outputs, references)
        traced = TracedProgram(
            program.name,
            program.inputs,
            output_specs(graph),
            program.dims,
            self._choice.state(outputs, program.state),
            references,
            golden,
            rounding_depth(graph),
            longest_contraction(graph),
            graph,
            rounded_activations(graph),
        )
        return traced if self.cache_type is None else quantize_caches(traced, program)

    def choose(
        self,
        asked: str,
        target: Target,
        base: str,
        pipeline: Sequence[Pass],
        options: Mapping[str, str],
        traced: Sequence[TracedProgram],
    ) -> None:
        """Find the precision of each layer for a target, where there is a budget or a gate."""
        if self.quantizer is None or base not in QUANTIZED:
            return
        wanted = self.quantizer.options.with_defaults(asked, target)
        if wanted.max_loss is None and wanted.speed_gate is None:
            return
        self.tell(f"choose precisions for {target.name}")
        plan = search(
            self.quantizer, target, asked, base, pipeline, traced[0], options, wanted, self.tell
        )
        source = self.quantizer.evaluation_source
        self.quantizer.choices = plan.by_layer
        self.quantizer.budget = plan_fields(plan, wanted.max_loss, source)

    def build(
        self,
        target: Target,
        precision: str,
        pipeline: Sequence[Pass],
        options: Mapping[str, str],
        directory: Path,
        traced: Sequence[TracedProgram],
        *,
        last: bool,
    ) -> TargetProduct:
        seconds: dict[str, float] = {}
        records: dict[str, list[PassRecord]] = {}
        ledger: dict[str, list[AttentionSite]] = {}
        layers: dict[str, list[LayerPrecision]] = {}
        tolerances = {t.name: self._tolerance(target, precision, t) for t in traced}
        lowered = []
        quantizer = self.quantizer if precision in QUANTIZED else None
        with self.step(f"passes for {target.name}", seconds):
            for item in traced:
                assert item.graph is not None
                name = item.name

                def quantized(found: Quantized, name: str = name) -> None:
                    layers[name] = found.layers
                    if self._rtol is None:
                        tolerances[name] = found.tolerance(tolerances[name])

                graph = item.graph if last else item.graph.clone()
                if last:
                    item.graph = None
                observers = [*self._observers(target, item, tolerances)]
                steps: Iterable[Pass] = pipeline
                if quantizer is not None:
                    steps = quantizer.passes(pipeline, graph, item, quantized)
                records[item.name] = run_passes(graph, steps, observers)
                ledger[item.name] = attention_sites(graph, records[item.name])
                layers.setdefault(name, layer_precisions(graph))
                target.check_nodes(item.name, graph, precision)
                lowered.append(
                    Lowered(item.name, graph, item.inputs, item.outputs, item.dims, item.state)
                )
        if self._require_fused:
            check_fused(ledger)
        ops = {program.name: dict(sorted(count_ops(program.graph).items())) for program in lowered}
        with self.step(f"compile for {target.name}", seconds):
            emission = target.emit(lowered, directory, precision=precision, options=options)
        return TargetProduct(
            precision,
            options,
            emission,
            records,
            ops,
            tolerances,
            ledger,
            layers,
            quantizer.manifest() if quantizer is not None else {},
            seconds,
        )

    def _tolerance(self, target: Target, precision: str, item: TracedProgram) -> Tolerance:
        if self._rtol is not None:
            return Tolerance(self._rtol, 16 * self._rtol)
        floats = Tolerance.for_precision(
            target.rounding(precision), depth=item.depth, contraction=item.contraction
        )
        # Of what is quantized the Quantizer tells, which knows all of its roundings.
        return floats if precision in QUANTIZED else floats.with_codes(item.codes)

    def _observers(
        self, target: Target, item: TracedProgram, tolerances: Mapping[str, Tolerance]
    ) -> Iterator[Observer]:
        if dump := os.environ.get("OMNIGRAPH_DUMP"):
            yield _dumper(Path(dump) / target.name / item.name)
        if self._verify_each:
            exact = Tolerance.for_precision("fp32", depth=item.depth, contraction=item.contraction)
            exact = exact.with_codes(item.codes)
            yield _Verifier(item, exact, lambda: tolerances[item.name])
        else:
            yield lambda _, pass_, graph: check_graph(graph, pass_.name)

    def check(
        self,
        target: Target,
        directory: Path,
        manifest: Mapping[str, Any],
        product: TargetProduct,
        traced: Sequence[TracedProgram],
    ) -> list[NumberCheck]:
        with self.step(f"contract of {target.name}", product.seconds):
            for item in traced:
                write_golden(directory / golden_name(item.name), item.golden)
            seal(directory, manifest)
            return check_artifact(
                directory,
                {item.name: item.references for item in traced},
                product.tolerances,
                execute=product.emission.executes_here,
            )


class _Verifier:
    """Checks legality and numbers after each pass; passes that round loosen what is exact.

    What quantizes is compared by the Quantizer, which knows its noise; the tolerance of what comes
    after is known then.
    """

    def __init__(
        self, item: TracedProgram, exact: Tolerance, rounded: Callable[[], Tolerance]
    ) -> None:
        self._item, self._exact, self._rounded, self._seen = item, exact, rounded, False

    def __call__(self, _: int, pass_: Pass, graph: Graph) -> None:
        check_graph(graph, pass_.name)
        self._seen |= pass_.rounds
        if isinstance(pass_, CorrectBiases | InsertQdq):
            return
        compare_graph(
            graph,
            [reference.feeds for reference in self._item.references],
            [reference.outputs for reference in self._item.references],
            self._rounded() if self._seen else self._exact,
            f"pass {pass_.name!r}",
        )


def _dumper(directory: Path) -> Observer:
    """Writes one readable file for the Graph after each pass, numbered."""
    directory.mkdir(parents=True, exist_ok=True)

    def dump(position: int, pass_: Pass, graph: Graph) -> None:
        file = directory / f"{position:02d}-{pass_.name}.txt"
        file.write_text(graph_text(graph), encoding="utf-8")

    return dump


def _check_target(target: Target, precision: str | None, options: Mapping[str, str]) -> None:
    if reason := target.unusable():
        raise UsageError(
            f"Target {target.name!r} cannot compile here: {reason}",
            hint="`omnigraph targets` lists those that can",
        )
    if precision is not None:
        target.check_precision(CARRIER if precision == AUTO else precision)
    target.check_options(options)


def choose_programs(
    source: ModelSource, wanted: Sequence[str] | None, dynamic: Mapping[str, Dim]
) -> tuple[Program, ...]:
    """The programs asked for, with the ranges asked for.

    Raises:
        UsageError: there is no such program or dimension.
    """
    known = [program.name for program in source.programs]
    for name in wanted or ():
        if name not in known:
            raise UsageError(
                f"{source.name} has no program {name!r}",
                expected=" or ".join(known),
                hint="leave --programs out to compile all of them",
            )
    chosen = [p for p in source.programs if wanted is None or p.name in wanted]
    dims = {dim for program in chosen for dim in (*program.dims, *program.dim_names())}
    for dim in dynamic:
        if dim not in dims:
            raise UsageError(
                f"{source.name} has no dimension {dim!r}",
                expected=", ".join(sorted(dims)),
                hint="`omnigraph inspect MODEL` shows the dimensions of each input",
            )
    return tuple(program.with_dims(dynamic) for program in chosen)


def _paths(
    name: str,
    targets: Sequence[Target],
    precisions: Sequence[str],
    out: str | os.PathLike[str] | None,
) -> list[Path]:
    usual = [f"{name}-{t.name}-{p}.omni" for t, p in zip(targets, precisions, strict=True)]
    if out is None:
        return [Path(file) for file in usual]
    if len(targets) == 1:
        return [Path(out)]
    if Path(out).suffix == ".omni" or Path(out).is_file():
        raise UsageError(
            "Several targets do not fit into one file",
            expected="--out DIRECTORY, which gets one artifact for each",
            found=str(out),
            hint="give a directory, or export one target at a time",
        )
    return [Path(out) / file for file in usual]
