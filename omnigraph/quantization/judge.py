"""Measures what a choice of precisions loses: over every program, on its Graph and on the target.

Each program is judged by itself, on what `omnigraph.quantization.evaluation` says. The bound is on
the worst of them. A program without logits counts by the agreement of its outputs, unless all of
its layers are in programs that have logits: then these say what its error does to the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from omnigraph.quantization.evaluation import Loss, Run, Sample, loss_of

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
        samples: with the model's own results.
        source: of the samples, for a person.
    """

    name: str
    layers: frozenset[str]
    samples: Sequence[Sample]
    source: str

    @property
    def predicts(self) -> bool:
        """Whether it is judged by perplexity."""
        return any(sample.targets is not None for sample in self.samples)

    @property
    def rows(self) -> int:
        """How many samples tell how much samples differ."""
        judged = [s for s in self.samples if s.targets is not None] or self.samples
        return sum(sample.rows for sample in judged)


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
        predicting = [program for program in programs if program.predicts]
        covered = frozenset().union(*(program.layers for program in predicting))
        self.counted = [
            program for program in programs if program.predicts or not program.layers <= covered
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
                return loss_of(run, program.samples[:_SENSITIVITY_SAMPLES])
        return None

    def on_graphs(self, choices: Choices) -> Losses:
        """The losses of the quantized Graphs in onnxruntime."""
        return self._losses(
            {p.name: loss_of(self._quantize(p.name, choices), p.samples) for p in self.programs}
        )

    def on_target(self, choices: Choices) -> Losses:
        """The losses of the compiled programs in the target's own runtime."""
        assert self._compile is not None
        found = {}
        for program in self.programs:
            with self._compile(program.name, choices) as run:
                found[program.name] = loss_of(run, program.samples)
        return self._losses(found)

    def _losses(self, found: Mapping[str, Loss]) -> Losses:
        return Losses(found, [program.name for program in self.counted])

    def fields(self, losses: Losses) -> dict[str, Any]:
        """Losses as JSON-ready fields: the worst, and that of each program."""
        sources = {program.name: program.source for program in self.programs}
        return {
            "program": losses.program,
            "evaluation": sources[losses.program],
            **losses.worst.to_dict(),
            "programs": {
                name: {
                    **loss.to_dict(),
                    "evaluation": sources[name],
                    "counts": name in losses.counted,
                }
                for name, loss in losses.by_program.items()
            },
        }
