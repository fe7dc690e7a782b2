"""Measures what a choice of precisions loses: over every program, on its Graph and on the target.

Each program is judged by itself, on what `omnigraph.quantization.evaluation` says. The bound is on
the worst of them. A program whose metric says nothing of the result (agreement), or is not the one
that was asked for, does not count where all of its layers are in programs that lead: then these say
what its error does to the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.quantization.evaluation import Evaluation, Run
from omnigraph.quantization.metrics.metric import Loss

#: The precision of every layer, by module path.
Choices = Mapping[str, str]
#: Quantizes a program, by its name, and gives what runs its Graph.
Quantize = Callable[[str, Choices], Run]
#: Compiles a quantized program for the target, and gives what runs it there.
Compile = Callable[[str, Choices], AbstractContextManager[Run]]

#: Samples for the loss of one unit; the loss of a plan is measured on all samples.
_SENSITIVITY_SAMPLES = 32


@dataclass(frozen=True, eq=False)
class JudgedProgram:
    """A program that a loss is measured on.

    Args:
        layers: module paths of its linear layers and embeddings.
        evaluation: its metric and its samples, with the model's own results.
        source: of the samples, for a person.
        leads: whether its metric is the one that was asked for, or says something of the result; on
            samples of its own.
    """

    name: str
    layers: frozenset[str]
    evaluation: Evaluation
    source: str
    leads: bool = True


def check_enough(program: JudgedProgram, most: float) -> None:
    """Refuse a bound that cannot be kept on the samples of a program.

    Args:
        most: the bound on the loss.

    Raises:
        UsageError: they do not tell how much samples differ, or are too few for so small a share.
    """
    evaluation, rows = program.evaluation, program.evaluation.rows
    needed = evaluation.metric.least_rows
    if rows < needed:
        raise UsageError(
            "A bound on the loss cannot be kept on "
            f"{'one sample' if rows == 1 else f'{rows} samples'} of {program.source}",
            expected=f"{'two' if needed == 2 else needed} samples or more: how much they differ "
            "says what others lose",
            found=f"{rows} for program {program.name!r}",
            hint="give --evaluation DATA, with a hundred samples or so",
        )
    if (least := evaluation.least) > most:
        raise UsageError(
            f"{rows} samples of {program.source} are too few for a bound of {most:.3%} by metric "
            f"{evaluation.metric.name!r}",
            expected=f"a bound of {math.ceil(least * 1000) / 1000:.1%} or more, or more samples",
            found=f"with no change in any of them, others may still lose {least:.3%}",
            hint="give --evaluation DATA with more samples and --samples N, a larger --max-loss, "
            "or another --metric: that of a mean needs fewer samples than that of a share",
        )


@dataclass(frozen=True)
class Losses:
    """The loss of each program under one choice of precisions.

    Args:
        by_program: of every program that was measured.
        counted: the names of those that the bound is on.
    """

    by_program: Mapping[str, Loss]
    counted: Sequence[str]

    @property
    def program(self) -> str:
        """The name of the program that loses most."""
        order = {name: self.by_program[name] for name in self.counted}
        return max(order, key=lambda name: (order[name].upper, order[name].relative))

    @property
    def worst(self) -> Loss:
        """The loss of the program that loses most."""
        return self.by_program[self.program]

    def within(self, most: float) -> bool:
        """Whether the upper end of every counted loss is within a bound; NaN is not."""
        return all(self.by_program[name].upper <= most for name in self.counted)


class Judge:
    """Measures losses.

    Args:
        programs: each with its samples; empty where no loss is asked for.
        quantize: gives the quantized Graph of a program in onnxruntime.
        compile_: gives the compiled program on the target; None where the target does not run here.
    """

    def __init__(
        self, programs: Sequence[JudgedProgram], quantize: Quantize, compile_: Compile | None
    ) -> None:
        self.programs, self._quantize, self._compile = programs, quantize, compile_
        leading = [program for program in programs if program.leads]
        covered = frozenset().union(*(program.layers for program in leading))
        self.counted = [
            program for program in programs if program.leads or not program.layers <= covered
        ]

    @property
    def runs_on_target(self) -> bool:
        """Whether losses can be measured on the target."""
        return self._compile is not None

    def alone(self, layers: Sequence[str], choices: Choices) -> Loss | None:
        """The loss of some layers, on the first program that has them; None where none has."""
        for program in self.counted:
            if program.layers.intersection(layers):
                run = self._quantize(program.name, choices)
                return program.evaluation.ranking(run, _SENSITIVITY_SAMPLES)
        return None

    def on_graphs(self, choices: Choices) -> Losses:
        """The losses of the quantized Graphs in onnxruntime."""
        return self._losses(
            {p.name: p.evaluation.loss(self._quantize(p.name, choices)) for p in self.programs}
        )

    def on_target(self, choices: Choices) -> Losses:
        """The losses of the compiled programs in the target's own runtime."""
        assert self._compile is not None
        found = {}
        for program in self.programs:
            with self._compile(program.name, choices) as run:
                found[program.name] = program.evaluation.loss(run)
        return self._losses(found)

    def _losses(self, found: Mapping[str, Loss]) -> Losses:
        return Losses(found, [program.name for program in self.counted])

    def fields(self, losses: Losses) -> dict[str, Any]:
        """Losses as JSON-ready fields: the worst, and that of each program."""
        sources = {program.name: program.source for program in self.programs}
        ranked = dict.fromkeys(p.evaluation.metric.ranked_by for p in self.counted)
        return {
            "program": losses.program,
            "evaluation": sources[losses.program],
            **losses.worst.to_dict(),
            **({"ranked_by": " or ".join(filter(None, ranked))} if any(ranked) else {}),
            "programs": {
                name: {
                    **loss.to_dict(),
                    "evaluation": sources[name],
                    "counts": name in losses.counted,
                }
                for name, loss in losses.by_program.items()
            },
        }
