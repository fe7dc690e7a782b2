"""What the passes make of a model: its Graph after any of them, and what each found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omnigraph.errors import UsageError
from omnigraph.inspection.graph_picture import picture
from omnigraph.ledger.graph_text import graph_diff, graph_text
from omnigraph.passes.base import Finding, Pass, run_passes
from omnigraph.passes.pipelines import common
from omnigraph.passes.registry import edited, make_pass
from omnigraph.program import Dim

if TYPE_CHECKING:
    from omnigraph.frontends.resolve import ModelSource


@dataclass(frozen=True)
class Stage:
    """One program at one stage of a pipeline.

    Args:
        program: its name.
        before: the Graph's text before the pass (as traced, where the stage is no pass).
        after: its text after it.
        name: the pass, or "trace".
        findings: what that pass made of each site.
        picture: a Mermaid flowchart of the first place that it changed.
    """

    program: str
    before: str
    after: str
    name: str
    findings: tuple[Finding, ...] = ()
    picture: str = ""

    @property
    def diff(self) -> str:
        """What the pass changed, as a unified diff."""
        names = (f"{self.program} before {self.name}", f"{self.program} after {self.name}")
        return graph_diff(self.before, self.after, names)


@dataclass(frozen=True)
class Subject:
    """A model and how to look at it: what ``export`` would be given.

    Args:
        target: whose pipeline to run; None is what all targets begin with.
        precision: one of the target's; None is its first.
        passes: edits of the pipeline, as for ``export``.
        programs: which programs to look at; None is all.
        dynamic: the range of each dimension, as for ``export``.
    """

    model: object
    config: str | None = None
    settings: Mapping[str, str] | None = None
    target: str | None = None
    precision: str | None = None
    passes: str = ""
    programs: Sequence[str] | None = None
    dynamic: Mapping[str, Dim] | None = None

    def pipeline(self) -> tuple[Pass, ...]:
        """The passes to run.

        Raises:
            UsageError: no such target, precision or pass.
        """
        if self.target is None:
            return edited(common(), self.passes, len(common()))
        from omnigraph.lowering import find_target

        target = find_target(self.target)
        precision = self.precision or target.precisions[0]
        target.check_precision(precision)
        return target.passes(precision, self.passes)

    def source(self) -> ModelSource:
        """The model, with the programs and ranges asked for.

        Raises:
            UsageError: there is no such model, program or dimension.
        """
        from omnigraph.driver import choose_programs
        from omnigraph.frontends.resolve import resolve

        source = resolve(self.model, config=self.config, settings=self.settings)
        return replace(source, programs=choose_programs(source, self.programs, self.dynamic or {}))


def stages(subject: Subject, after: str) -> list[Stage]:
    """Each program of a model before and after a pass: its last run in the pipeline.

    Args:
        after: the name of the pass, or "trace". A pass that the pipeline does not have is run, with
            its options as given (``name:option=value``), at its end.

    Raises:
        UsageError: there is no such pass.
    """
    from omnigraph.tracing.trace import trace

    pipeline = subject.pipeline()
    if after != "trace":
        pipeline = _up_to(pipeline, after)
    found = []
    for program in subject.source().programs:
        graph = trace(program)
        if after == "trace":
            text = graph_text(graph)
            found.append(Stage(program.name, text, text, "trace"))
            continue
        run_passes(graph, pipeline[:-1])
        before = graph.clone()
        (record,) = run_passes(graph, pipeline[-1:])
        found.append(
            Stage(
                program.name,
                graph_text(before),
                graph_text(graph),
                record.name,
                record.findings,
                picture(before, graph, record.name),
            )
        )
    return found


def explain(subject: Subject, name: str) -> dict[str, list[Finding]]:
    """What a pass made of each site of each program of a model, or why it left it alone.

    Raises:
        UsageError: there is no such pass, or it does not look at sites one by one.
    """
    from omnigraph.passes.site_pass import SitePass

    pass_ = make_pass(name)
    if not isinstance(pass_, SitePass):
        raise UsageError(
            f"Pass {pass_.name!r} has no sites to explain",
            expected="a pass that looks at sites one by one, such as fuse-attention",
            hint=f"`omnigraph inspect MODEL --after {pass_.name} --diff` shows what it changed",
        )
    return {stage.program: list(stage.findings) for stage in stages(subject, name)}


def explanation_fields(found: Mapping[str, Sequence[Finding]]) -> dict[str, Any]:
    """Findings by program as JSON-ready fields."""
    return {program: [f.to_dict() for f in findings] for program, findings in found.items()}


def _up_to(pipeline: Sequence[Pass], name: str) -> tuple[Pass, ...]:
    """A pipeline that ends with the last pass of a name."""
    wanted = make_pass(name)
    places = [place for place, pass_ in enumerate(pipeline) if pass_.name == wanted.name]
    if not places:
        return (*pipeline, wanted)
    given = ":" in name
    return (*pipeline[: places[-1]], wanted if given else pipeline[places[-1]])
