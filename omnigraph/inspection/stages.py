"""Shows a model's Graph after a pass or a stage, and the findings of passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omnigraph.errors import UsageError
from omnigraph.exporting.options import OF_MODEL, ExportOptions
from omnigraph.inspection.graph_picture import picture
from omnigraph.inspection.no_sites import why_no_sites
from omnigraph.ledger.graph_text import graph_diff, graph_text
from omnigraph.passes.base import Finding, Pass, run_passes
from omnigraph.passes.pipeline import STAGES, Pipeline
from omnigraph.passes.pipelines import common
from omnigraph.passes.registry import PassEdit
from omnigraph.passes.site_pass import SitePass
from omnigraph.precision import carrier_of

if TYPE_CHECKING:
    from omnigraph.frontends.resolve import ModelSource
    from omnigraph.frontends.training_modes import TrainingModes
    from omnigraph.lowering import Target
    from omnigraph.program import Program


@dataclass(frozen=True)
class Stage:
    """One program at one stage of a pipeline.

    Args:
        program: its name.
        before: the Graph's text before the pass (as traced, where the stage is no pass).
        after: its text after it.
        name: the pass, the stage, or "trace".
        findings: of the pass, one for each site.
        picture: a Mermaid flowchart of the first place that it changed.
        no_sites: why the pass has no finding, if it looks for sites and found none.
    """

    program: str
    before: str
    after: str
    name: str
    findings: tuple[Finding, ...] = ()
    picture: str = ""
    no_sites: str = ""

    @property
    def diff(self) -> str:
        """What the pass changed, as a unified diff."""
        names = (f"{self.program} before {self.name}", f"{self.program} after {self.name}")
        return graph_diff(self.before, self.after, names)


@dataclass(frozen=True)
class Subject:
    """A model and the options to inspect it with.

    Args:
        target: whose pipeline to run; None is the passes that all targets begin with.
        options: see `ExportOptions`.
    """

    model: object
    target: str | None = None
    options: ExportOptions = field(default_factory=ExportOptions)

    def __post_init__(self) -> None:
        used = OF_MODEL if self.target is not None else set(OF_MODEL) - {"precision"}
        self.options.check_used((*used, "quantization"), "Looking at a model")

    def pipeline(self) -> Pipeline:
        """The passes to run.

        Raises:
            UsageError: there is no such target or pass.
            UnsupportedError: the target cannot do the precision.
        """
        target, options = self._target(), self.options
        if target is None:
            return common().edited(options.passes)
        precision = carrier_of(options.precision or target.precisions[0])
        target.check_precision(precision)
        return target.passes(precision, options.passes, options.quantizing.four_bits)

    def source(self, modes: TrainingModes) -> ModelSource:
        """The model, with the programs and ranges of the options.

        Args:
            modes: remembers the modes that the modules had.

        Raises:
            UsageError: there is no such model, program or dimension.
        """
        from omnigraph.exporting.program_choice import choose_programs
        from omnigraph.frontends.resolve import resolve

        target, options = self._target(), self.options
        of_target = target.options if target is not None else ()
        settings = {k: v for k, v in (options.settings or {}).items() if k not in of_target}
        source = resolve(
            self.model,
            config=options.config,
            settings=settings,
            inputs=options.inputs,
            modes=modes,
        )
        programs = choose_programs(source, options.programs, options.dynamic or {})
        return replace(source, programs=programs)

    def _target(self) -> Target | None:
        from omnigraph.lowering import find_target

        return find_target(self.target) if self.target is not None else None


def stages(subject: Subject, after: str) -> list[Stage]:
    """Each program of a model before and after a pass, or a stage of the pipeline.

    Args:
        after: "trace"; the name of a stage, such as "fused"; or the name of a pass, of which the
            last run counts. A pass that the pipeline does not have runs at its end, with its
            options as given (``name:option=value``).

    Raises:
        UsageError: there is no such pass.
    """
    from omnigraph.frontends.training_modes import TrainingModes

    before, last = _split(subject.pipeline(), after)
    with TrainingModes() as modes:
        return [_stage(program, after, before, last) for program in subject.source(modes).programs]


def _stage(program: Program, after: str, before: Sequence[Pass], last: Sequence[Pass]) -> Stage:
    from omnigraph.tracing.trace import trace_within_limits

    program, graph = trace_within_limits(program)
    traced = graph.clone()
    run_passes(graph, before)
    start = graph.clone()
    records = run_passes(graph, last)
    findings = tuple(finding for record in records for finding in record.findings)
    no_sites = ""
    if not findings and len(last) == 1 and isinstance(last[0], SitePass):
        no_sites = why_no_sites(last[0], traced, start)
    return Stage(
        program.name,
        graph_text(start),
        graph_text(graph),
        after if after in ("trace", *STAGES) else records[-1].name,
        findings,
        picture(start, graph, after) if records else "",
        no_sites,
    )


def _split(pipeline: Pipeline, after: str) -> tuple[Sequence[Pass], Sequence[Pass]]:
    """The passes to run first, and then the pass, or the stage of passes, to show."""
    if after == "trace":
        return (), ()
    if after in STAGES:
        upto = pipeline.until(after)
        stage = getattr(pipeline, after)
        return tuple(upto)[: len(upto) - len(stage)], stage
    passes = tuple(pipeline)
    place, pass_ = _named(passes, after)
    return passes[:place], (pass_,)


def _named(passes: Sequence[Pass], text: str) -> tuple[int | None, Pass]:
    """The place of a pass's last run, or None, and the pass, with the options of the text."""
    places = {pass_.name: place for place, pass_ in enumerate(passes)}
    if (place := places.get(text)) is not None:
        return place, passes[place]  # it may be anyone's own
    edit = PassEdit.parse(text)
    if (place := places.get(edit.name)) is not None:
        return place, edit.set_on(passes[place])
    return None, edit.make()


def explain(subject: Subject, name: str) -> dict[str, Stage]:
    """Each program of a model with the findings of a pass at its sites, or why there is no site.

    Raises:
        UsageError: there is no such pass, or it is not a `SitePass`.
    """
    _, pass_ = _named(tuple(subject.pipeline()), name)
    if not isinstance(pass_, SitePass):
        raise UsageError(
            f"Pass {pass_.name!r} has no sites to explain",
            expected="a pass that visits sites one by one, such as fuse-attention",
            hint=f"`omnigraph inspect MODEL --after {pass_.name} --diff` shows what it changed",
        )
    return {stage.program: stage for stage in stages(subject, name)}


def explanation_fields(found: Mapping[str, Stage]) -> dict[str, Any]:
    """The findings by program, and why a program has none, as JSON-ready fields."""
    return {
        "programs": {name: [f.to_dict() for f in stage.findings] for name, stage in found.items()},
        "no_sites": {name: stage.no_sites for name, stage in found.items() if stage.no_sites},
    }
