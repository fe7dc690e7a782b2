"""From a model to an artifact: resolve, trace, lower for each target, check, publish."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnigraph.artifact import publish, seal, staging
from omnigraph.artifact.signature import Signer
from omnigraph.contract.comparison import NumberCheck, Openers, check_artifact
from omnigraph.contract.graph_check import check_graph
from omnigraph.contract.greedy_tokens import TokenAgreement, TokenCount
from omnigraph.export_job import TargetProduct, TracedProgram, traced_program
from omnigraph.exporting.expendable import tried
from omnigraph.exporting.lower_program import LoweredProgram, lower_program
from omnigraph.exporting.memory_errors import memory_errors
from omnigraph.exporting.options import ExportOptions
from omnigraph.exporting.output_choice import OutputChoice
from omnigraph.exporting.plan import (
    TargetJob,
    artifact_paths,
    check_out,
    model_settings,
    plan_jobs,
)
from omnigraph.exporting.program_choice import choose_programs
from omnigraph.exporting.report import ExportReport, Remarks
from omnigraph.external_weights import release_memory
from omnigraph.frontends.resolve import ModelSource, resolve
from omnigraph.frontends.training_modes import TrainingModes
from omnigraph.graph import count_ops, places
from omnigraph.head_variants.variants import Variants, make_variants
from omnigraph.input_sets import contract_cases
from omnigraph.ledger.attention import check_fused
from omnigraph.ledger.precision import with_stored_choices
from omnigraph.lowering.emulation import run_lowered
from omnigraph.manifest import build_manifest, golden_name, write_golden
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.program import Case, Program, fit_sizes
from omnigraph.progress import StepProgress, Steps
from omnigraph.quantization.finer_cost import measured_cost
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.greedy import greedy_tokens
from omnigraph.quantization.kv_cache import quantize_caches
from omnigraph.quantization.quantize import manifest_fields, save_statistics
from omnigraph.quantization.quantized_program import Search
from omnigraph.quantization.real_inputs import with_real_inputs
from omnigraph.quantization.samples import Samples, prepare
from omnigraph.quantization.search import choose_precisions
from omnigraph.tracing.compared_positions import compared_positions
from omnigraph.tracing.hidden_rows import hidden_row
from omnigraph.tracing.names import output_specs
from omnigraph.tracing.trace import check_trace, reference_for, trace_within_limits

_GOLDEN = {"batch": 2, "sequence": 5, "past": 3, "decoder_sequence": 4}
#: Of no other input set; it stays, so that artifacts keep their bytes.
_GOLDEN_SEED = 5


@memory_errors
def export(
    model: object,
    target: str | Sequence[str],
    options: ExportOptions | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    progress: StepProgress | None = None,
    **given: Any,
) -> list[ExportReport]:
    """Compile a model for one or more targets and check every program's numbers against torch.

    Args:
        model: "omninet", "file.py:factory", "package.module:factory", a file or a folder of a
            model, a ``torch.nn.Module`` (with ``inputs``), or Programs.
        target: one target, several in a sequence, or several joined by commas.
        options: see `ExportOptions`.
        out: the artifact's path, a single file if it ends in ``.omni``, else a directory. For
            several targets, and wherever it is a folder of artifacts, it is a directory that gets
            a file NAME-TARGET-PRECISION.omni for each.
        progress: called with each step.
        given: fields of `ExportOptions` by keyword, such as ``precision="int8"``.

    Returns:
        One report for each target, in order.

    Raises:
        OmniGraphError: the export failed; no artifact is written then, for any target.
    """
    options = ExportOptions.of(options, given)
    jobs = plan_jobs(target, options)
    check_out(jobs, out)
    work = _Export(options, jobs, Steps(progress, total=2 + 3 * len(jobs)))
    with TrainingModes() as modes:
        return _run(work, model, modes, out)


def _run(
    work: _Export, model: object, modes: TrainingModes, out: str | os.PathLike[str] | None
) -> list[ExportReport]:
    """All steps of an export."""
    jobs, sign = work.jobs, work.options.sign
    signer = Signer(sign) if sign is not None else None
    source, samples, facts = work.resolve(model, modes)
    paths = artifact_paths(source.name, jobs, out)
    source, traced, variants = work.trace(source, samples)
    remarks = Remarks(
        tuple(limit for item in traced for limit in item.limits),
        source.not_made,
        {program.name: program.left_out for program in source.programs if program.left_out},
    )
    source = replace(source, programs=())  # no step below needs torch's modules
    with ExitStack() as stack:
        directories = [stack.enter_context(staging(path)) for path in paths]
        staged = []
        for job, path, directory in zip(jobs, paths, directories, strict=True):
            product, facts = work.lower(job, directory, traced, samples, facts)
            staged.append(_Staged(job, path, directory, product))
        release_memory()  # no step below needs the weights
        checks = [work.check(each, source, traced, variants) for each in staged]
        if samples is not None:
            save_statistics(work.options.quantizing, facts)
        if signer is not None:
            for each in staged:
                signer.sign(each.directory)
        done = zip(staged, checks, strict=True)
        return [work.publish(each, found, remarks) for each, found in done]


@dataclass(frozen=True)
class _Staged:
    """One target's compiled files.

    Args:
        path: where the artifact goes.
        directory: where its files are until then.
    """

    job: TargetJob
    path: Path
    directory: Path
    product: TargetProduct


@dataclass(frozen=True)
class _Checked:
    """What the contract found of one target's artifact.

    Args:
        numbers: the worst deviation of each output.
        tokens: how many greedy tokens are torch's, for each program of a language model.
    """

    numbers: Sequence[NumberCheck]
    tokens: Sequence[TokenAgreement]


@dataclass(frozen=True)
class _Export:
    """The steps of one export, in order."""

    options: ExportOptions
    jobs: Sequence[TargetJob]
    steps: Steps

    # -- resolve -----------------------------------------------------------------------------------

    def resolve(
        self, model: object, modes: TrainingModes
    ) -> tuple[ModelSource, Samples | None, QuantizationFacts]:
        """The model's programs, the samples to calibrate on, and the facts known so far."""
        options = self.options
        with self.steps.step("model"):
            source = resolve(
                model,
                config=options.config,
                settings=model_settings(self.jobs, options),
                inputs=options.inputs,
                modes=modes,
            )
            programs = choose_programs(source, options.programs, options.dynamic or {})
            self._outputs.check({program.name: program.outputs for program in programs})
            samples, facts = None, QuantizationFacts()
            if any(job.quantizes for job in self.jobs):
                judges = any(job.judges(options.quantizing) for job in self.jobs)
                prepared = prepare(options.quantizing, programs, judges=judges)
                programs, samples, facts = prepared.programs, prepared.samples, prepared.facts
            elif options.kv_cache is not None:
                programs = with_real_inputs(programs)
        return replace(source, programs=programs), samples, facts

    @property
    def _outputs(self) -> OutputChoice:
        return OutputChoice(tuple(self.options.outputs), tuple(self.options.last))

    # -- trace -------------------------------------------------------------------------------------

    def trace(
        self, source: ModelSource, samples: Samples | None
    ) -> tuple[ModelSource, list[TracedProgram], Variants | None]:
        """Each program as a Graph with torch's results; and the variants with fewer heads.

        The source is without those that it need not have, and that cannot be traced.
        """
        names = ", ".join(program.name for program in source.programs)
        with self.steps.step(f"trace {names}"):
            done, why = tried(source.programs, lambda program: self._trace(program, samples))
        programs, traced = [program for program, _ in done], [item for _, item in done]
        source = replace(source, programs=tuple(programs), not_made={**source.not_made, **why})
        importance = self.options.importance
        keeps = self.options.heads
        if not keeps:
            return source, traced, None
        variants = make_variants(programs, traced, keeps, importance)
        return source, [*traced, *variants.programs], variants

    def _trace(self, program: Program, samples: Samples | None) -> tuple[Program, TracedProgram]:
        """The program as far as its module goes, and its trace."""
        program, graph = trace_within_limits(program)
        check_graph(graph, "trace")
        rounds = any(job.rounds_floats for job in self.jobs)
        cases = contract_cases(program, compared_positions(graph, rounds=rounds))
        references = [reference_for(program, case) for case in cases]
        check_trace(program, graph, references)
        golden = Case("golden", fit_sizes(program, _GOLDEN), "left", seed=_GOLDEN_SEED)
        references.append(reference_for(program, golden))
        outputs = output_specs(graph)
        greedy = greedy_tokens(program, references[:-1], outputs, samples)
        if (hidden := hidden_row(program, seed=len(cases) + 1)) is not None:
            references.insert(0, hidden)
        references = self._outputs.apply(graph, program.inputs, outputs, references)
        state = self._outputs.state(outputs, program.state)
        traced = traced_program(program, graph, output_specs(graph), state, references)
        traced.greedy = greedy
        if self.options.kv_cache is not None:
            traced = quantize_caches(traced, program)
        return program, traced

    # -- lower -------------------------------------------------------------------------------------

    def lower(
        self,
        job: TargetJob,
        directory: Path,
        traced: Sequence[TracedProgram],
        samples: Samples | None,
        facts: QuantizationFacts,
    ) -> tuple[TargetProduct, QuantizationFacts]:
        """Run a target's passes on each program and compile it; also gives all facts known then."""
        budget: Mapping[str, Any] = {}
        if samples is not None and job.quantizes:
            facts, budget = self._choices(job, traced, samples, facts)
        seconds: dict[str, float] = {}
        lowered: list[LoweredProgram] = []
        with self.steps.step(f"passes for {job.target.name}", seconds):
            for item in traced:
                calibrator = self._calibrator(samples, item) if job.quantizes else None
                graph = item.take_graph() if job is self.jobs[-1] else item.copy_graph()
                done = lower_program(job, item, graph, self.options, calibrator, facts)
                lowered.append(done)
                facts = done.facts
        if self.options.require_fused:
            check_fused({done.program.name: done.ledger for done in lowered})
        ops = {d.program.name: dict(sorted(count_ops(d.program.graph).items())) for d in lowered}
        with self.steps.step(f"compile for {job.target.name}", seconds):
            emission = job.target.emit(
                [done.program for done in lowered],
                directory,
                precision=job.precision,
                options=job.settings,
            )
        product = TargetProduct(
            job.called(row for done in lowered for row in done.layers),
            job.settings,
            emission,
            {done.program.name: done.records for done in lowered},
            ops,
            {done.program.name: done.bounds for done in lowered},
            {done.program.name: done.ledger for done in lowered},
            {done.program.name: done.layers for done in lowered},
            self._quantization(lowered, facts, budget) if job.quantizes else {},
            seconds,
            {done.program.name: places(done.program.graph) for done in lowered},
            measured_cost(done.finer_milliseconds for done in lowered),
        )
        return product, replace(facts, choices={})

    def _calibrator(self, samples: Samples | None, item: TracedProgram) -> Calibrator | None:
        if samples is None:
            return None
        return Calibrator(self.options.quantizing, samples, item, self.steps.progress)

    def _choices(
        self,
        job: TargetJob,
        traced: Sequence[TracedProgram],
        samples: Samples,
        facts: QuantizationFacts,
    ) -> tuple[QuantizationFacts, Mapping[str, Any]]:
        """Each layer's scheme: from the options, or searched with a budget or a speed gate."""
        runs_here = job.target.unrunnable() is None
        options = self.options.quantizing.with_defaults(job.asked, runs_here=runs_here)
        choices = job.target.layer_schemes(options.choices, options.four_bits)
        facts = replace(facts, choices=choices)
        if options.max_loss is None and options.speed_gate is None:
            return facts, {}
        self.steps.progress(f"choose precisions for {job.target.name}")
        search = Search(job.target, job.asked, job.pipeline, options, job.settings)
        calibrators = [Calibrator(options, samples, i, self.steps.progress) for i in traced]
        found = choose_precisions(search, calibrators, facts)
        return found.facts, found.manifest

    def _quantization(
        self,
        lowered: Sequence[LoweredProgram],
        facts: QuantizationFacts,
        budget: Mapping[str, Any],
    ) -> dict[str, Any]:
        found = {d.program.name: d.deviation.rms for d in lowered if d.deviation is not None}
        if budget:
            budget = with_stored_choices(budget, [row for d in lowered for row in d.layers])
        return manifest_fields(self.options.quantizing, facts, found, budget)

    # -- check, publish ----------------------------------------------------------------------------

    def check(
        self,
        staged: _Staged,
        source: ModelSource,
        traced: Sequence[TracedProgram],
        variants: Variants | None,
    ) -> _Checked:
        """Seal the staged artifact, run it, and compare every output with torch."""
        job, directory, product = staged.job, staged.directory, staged.product
        manifest = build_manifest(source, job.target, product, traced)
        if variants is not None:
            manifest["variants"] = variants.manifest
        with self.steps.step(f"contract of {job.target.name}", product.seconds):
            source.text.write(directory)
            for item in traced:
                write_golden(directory / golden_name(item.name), item.golden)
            files = seal(directory, manifest)["files"]
            run, where = job.target.run_emitted, f"target {job.target.name}"
            if not product.emission.executes_here:
                run, where = run_lowered, f"onnxruntime, not {where}"
            tokens = TokenCount({item.name: item.greedy for item in traced}, where)
            checks = check_artifact(
                directory,
                {item.name: item.references for item in traced},
                product.bounds,
                Openers(tokens.counting(run), job.target.run_unrounded, job.target.constant_hashes),
                product.places,
            )
            if job.quantizes and tokens.found:
                found = [agreement.to_dict() for agreement in tokens.found]
                product.quantization = {**product.quantization, "greedy_tokens": found}
                manifest["quantization"] = dict(product.quantization)
                seal(directory, manifest, files=files)
        return _Checked(checks, tokens.found)

    def publish(
        self,
        staged: _Staged,
        checked: _Checked,
        remarks: Remarks,
    ) -> ExportReport:
        """Move the checked artifact to its path."""
        product = staged.product
        size = sum(p.stat().st_size for p in staged.directory.rglob("*") if p.is_file())
        publish(staged.directory, staged.path)
        return ExportReport(
            staged.path,
            staged.job.target.name,
            product.precision,
            size,
            {**self.steps.seconds, **product.seconds},
            checked.numbers,
            product.records,
            product.ledger,
            product.layers,
            {**product.quantization, **product.measured},
            checked.tokens,
            remarks,
        )
