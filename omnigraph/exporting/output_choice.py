"""Which outputs an export computes, and which of them for the last token only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from omnigraph.contract.reference import Reference
from omnigraph.errors import UsageError, suggest
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_outputs import EliminateDeadOutputs
from omnigraph.program import TensorSpec, mask_of


@dataclass(frozen=True)
class OutputChoice:
    """Outputs to compute, and outputs to compute for the last token alone.

    Args:
        outputs: the outputs to compute; empty is all. A program that has none of them keeps its
            own.
        last: the outputs of which only the position of the last token is computed.
    """

    outputs: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def check(self, programs: Mapping[str, Sequence[str]]) -> None:
        """Refuse a name that is no program's output.

        Args:
            programs: the outputs of each program.

        Raises:
            UsageError: with the outputs there are.
        """
        there = list(dict.fromkeys(name for outputs in programs.values() for name in outputs))
        for name in (*self.outputs, *self.last):
            if name not in there:
                raise UsageError(
                    f"No program has an output {name!r}",
                    expected=" or ".join(there),
                    hint=suggest(
                        name, there, "`omnigraph inspect MODEL` lists the outputs of each program"
                    ),
                )

    def apply(
        self,
        graph: Graph,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        references: Iterable[Reference],
    ) -> list[Reference]:
        """Change the outputs of a traced Graph in place, and give the references of what is left.

        Args:
            inputs: those of the program.
            outputs: those of the Graph before it is changed.
        """
        kept, last = self._of(outputs)
        run_passes(graph, (EliminateDeadOutputs(kept, last),))
        return [
            replace(
                reference,
                outputs={
                    spec.name: _last_position(spec, inputs, reference)
                    if spec.name in last
                    else reference.outputs[spec.name]
                    for spec in outputs
                    if not kept or spec.name in kept
                },
            )
            for reference in references
        ]

    def state(
        self, outputs: Sequence[TensorSpec], state: Iterable[tuple[str, str]]
    ) -> tuple[tuple[str, str], ...]:
        """The pairs (input, output) of a program's state whose output is still computed."""
        kept, _ = self._of(outputs)
        return tuple(pair for pair in state if not kept or pair[1] in kept)

    def _of(self, outputs: Sequence[TensorSpec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The outputs of one program to keep, and those to compute for the last token."""
        names = [spec.name for spec in outputs]
        kept = tuple(name for name in self.outputs if name in names)
        last = tuple(n for n in self.last if n in names and (not kept or n in kept))
        return kept, last


def _last_position(
    spec: TensorSpec, inputs: Sequence[TensorSpec], reference: Reference
) -> np.ndarray:
    """The last token's row of an output [B, T, …], as ``eliminate-dead-outputs`` defines it."""
    whole = reference.outputs[spec.name]
    found = mask_of(spec, inputs)
    if found is None or whole.shape[1] == 0:
        return whole[:, -1:]
    mask = reference.feeds[found.name]
    seen = mask[:, mask.shape[1] - whole.shape[1] :] != 0
    last = np.where(seen, np.arange(whole.shape[1]), 0).max(axis=1)
    return whole[np.arange(len(whole)), last][:, None]
