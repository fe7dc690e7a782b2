"""A pipeline: passes in named stages, which can be edited and stopped in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from omnigraph.errors import UsageError
from omnigraph.passes.base import Pass
from omnigraph.passes.registry import PassEdit

Passes = tuple[Pass, ...]


@dataclass(frozen=True)
class Pipeline:
    """The passes that make a traced Graph one that a target takes, stage by stage.

    Args:
        canonical: one node for each thing that is computed, from whatever an exporter wrote.
        fused: the one op that the standard has for a thing, from its many spellings.
        folded: masks and positions in the fewest numbers.
        quantized: integers or float8 in place of floats.
        kernels: the form that the target's kernels take.
    """

    canonical: Passes = ()
    fused: Passes = ()
    folded: Passes = ()
    quantized: Passes = ()
    kernels: Passes = ()

    def __iter__(self) -> Iterator[Pass]:
        """Every pass, in order."""
        for stage in STAGES:
            yield from getattr(self, stage)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def until(self, stage: str) -> Pipeline:
        """The pipeline up to a stage, which is its last.

        Raises:
            UsageError: there is no such stage.
        """
        if stage not in STAGES:
            raise UsageError(
                f"There is no stage {stage!r}",
                expected=" or ".join(STAGES),
                hint="`omnigraph passes` lists the passes, which can be named too",
            )
        left_out = STAGES[STAGES.index(stage) + 1 :]
        return replace(self, **dict.fromkeys(left_out, ()))

    def from_stage(self, stage: str) -> Pipeline:
        """The pipeline from a stage on, which is its first."""
        return replace(self, **dict.fromkeys(STAGES[: STAGES.index(stage)], ()))

    def then(self, *passes: Pass) -> Pipeline:
        """The pipeline with passes behind all others."""
        return replace(self, kernels=(*self.kernels, *passes))

    def edited(self, edits: str) -> Pipeline:
        """The pipeline with passes added, set and left out.

        Args:
            edits: names joined by commas. ``-name`` leaves every pass of that name out. ``name``,
                with options, sets those options of the passes of that name. Where there is none,
                the pass is added at the end of the stage ``folded``.

        Raises:
            UsageError: a name that is not known, or one to be left out that is not there.
        """
        pipeline = self
        for text in filter(None, (part.strip() for part in edits.split(","))):
            if text.startswith("-"):
                pipeline = pipeline._without(text[1:])
            else:
                pipeline = pipeline._with(PassEdit.parse(text))
        return pipeline

    def _without(self, name: str) -> Pipeline:
        if all(pass_.name != name for pass_ in self):
            raise UsageError(
                f"Pass {name!r} cannot be left out: it is not in the pipeline",
                expected=" or ".join(dict.fromkeys(pass_.name for pass_ in self)),
                hint="`omnigraph passes` lists all there are",
            )
        return self._mapped(lambda pass_: None if pass_.name == name else pass_)

    def _with(self, edit: PassEdit) -> Pipeline:
        if any(pass_.name == edit.name for pass_ in self):
            return self._mapped(lambda p: edit.set_on(p) if p.name == edit.name else p)
        return replace(self, folded=(*self.folded, edit.make()))

    def _mapped(self, change: Callable[[Pass], Pass | None]) -> Pipeline:
        """The pipeline with each pass changed; None leaves it out."""
        changed = {
            stage: tuple(made for pass_ in getattr(self, stage) if (made := change(pass_)))
            for stage in STAGES
        }
        return Pipeline(**changed)


#: The names of the stages, in order.
STAGES = tuple(field.name for field in fields(Pipeline))
