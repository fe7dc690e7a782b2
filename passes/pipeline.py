"""A pipeline: passes in named stages. It can be edited, and stopped after a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from omnigraph.errors import UsageError, suggest
from omnigraph.passes.base import Pass
from omnigraph.passes.registry import PassEdit

Passes = tuple[Pass, ...]


@dataclass(frozen=True)
class Pipeline:
    """The passes that make a traced Graph one that a target takes, stage by stage.

    Args:
        canonical: computes nothing twice, whatever the exporter wrote.
        fused: replaces many spellings of a computation by the one op of the standard.
        folded: computes masks and positions from the fewest numbers.
        quantized: replaces floats by integers or float8.
        kernels: brings nodes into the form that the target's kernels take.
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
        """The pipeline up to and with a stage.

        Raises:
            UsageError: there is no such stage.
        """
        if stage not in STAGES:
            raise UsageError(
                f"There is no stage {stage!r}",
                expected=" or ".join(STAGES),
                hint=suggest(stage, STAGES, "these are the stages of every pipeline, in order"),
            )
        left_out = STAGES[STAGES.index(stage) + 1 :]
        return replace(self, **dict.fromkeys(left_out, ()))

    def from_stage(self, stage: str) -> Pipeline:
        """The pipeline from a stage on."""
        return replace(self, **dict.fromkeys(STAGES[: STAGES.index(stage)], ()))

    def then(self, *passes: Pass) -> Pipeline:
        """The pipeline with more passes at the end."""
        return replace(self, kernels=(*self.kernels, *passes))

    def edited(self, edits: str) -> Pipeline:
        """The pipeline with passes added, set and left out.

        Args:
            edits: names joined by commas. ``-name`` leaves out every pass of that name. ``name``,
                with options, sets the options of every pass of that name; if there is none, it adds
                the pass at the end of the stage ``folded``.

        Raises:
            UsageError: there is no such pass, or the pipeline has none to leave out.
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
                hint=suggest(
                    name, [pass_.name for pass_ in self], "`omnigraph passes` lists all passes"
                ),
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
