"""How many greedy tokens of an artifact are the torch model's.

A language model's logits may be within their tolerance and still prefer another token: where two
tokens are nearly as likely, a small error decides. No norm of the error shows how often that is so;
it depends on the model. So the tokens are counted: at each position that no mask hides, the one
with the largest logit, of the artifact in its own runtime and of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.contract.proportion import lower_proportion
from omnigraph.contract.reference import Reference
from omnigraph.program import TensorSpec, mask_of

_LOGITS = "logits"


@dataclass(frozen=True)
class GreedyTokens:
    """The model's greedy tokens on some inputs.

    Args:
        references: each with one output, the logits' name, and tokens [B, T] int64, -1 where the
            position is hidden.
        source: of the inputs, for a person.
    """

    references: Sequence[Reference] = ()
    source: str = ""


@dataclass(frozen=True)
class TokenAgreement:
    """How many greedy tokens of one program are those of torch.

    Args:
        source: of the inputs, for a person.
        measured_on: what ran the program, for a person.
    """

    program: str
    same: int
    total: int
    source: str
    measured_on: str

    @property
    def lower(self) -> float:
        """The lower end of the part that agrees, at 95 of 100, as if tokens were independent."""
        return lower_proportion(self.same, self.total)

    def to_dict(self) -> dict[str, Any]:
        """The count as JSON-ready fields."""
        return {
            "program": self.program,
            "same": self.same,
            "total": self.total,
            "lower": self.lower,
            "source": self.source,
            "measured_on": self.measured_on,
        }

    def __str__(self) -> str:
        return (
            f"greedy tokens of {self.program}: {self.same:,} of {self.total:,} are torch's "
            f"({self.same / self.total:.2%}, at least {self.lower:.2%} at 95 of 100) on "
            f"{self.source}, run by {self.measured_on}"
        )


def greedy_reference(
    reference: Reference, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Reference | None:
    """A reference with the tokens of its logits [B, T, V] alone; None where it has no such logits.

    Args:
        inputs: the program's, with their roles.
        outputs: the program's, with their roles; no output is left out yet.
    """
    spec = next((spec for spec in outputs if spec.role == _LOGITS), None)
    if spec is None or all(given.role != "tokens" for given in inputs):
        return None
    logits = reference.outputs[spec.name]
    if logits.ndim != 3:
        return None
    tokens = logits.argmax(axis=2).astype(np.int64)
    mask = mask_of(spec, inputs)
    if mask is not None and mask.name in reference.feeds:
        shown = reference.feeds[mask.name][:, -tokens.shape[1] :] != 0
        tokens = np.where(shown, tokens, -1)
    return Reference(reference.case, reference.feeds, {spec.name: tokens})


class TokenCount:
    """Counts the greedy tokens of an artifact while the contract runs it.

    Args:
        expected: of each program.
        measured_on: what runs the programs, for a person.
    """

    def __init__(self, expected: Mapping[str, GreedyTokens], measured_on: str) -> None:
        self._expected, self._measured_on = expected, measured_on
        #: Of each program that has tokens to compare.
        self.found: list[TokenAgreement] = []

    def counting(
        self, open_program: Callable[[Artifact, str], AbstractContextManager[Run]]
    ) -> Callable[[Artifact, str], AbstractContextManager[Run]]:
        """What opens a program as ``open_program`` does, and counts when it is closed.

        Inputs that are run before that are not run again.
        """

        @contextmanager
        def opened(artifact: Artifact, program: str) -> Iterator[Run]:
            expected = self._expected.get(program, GreedyTokens())
            waiting = {id(reference.feeds): reference for reference in expected.references}
            counts = np.zeros(2, np.int64)

            def compare(reference: Reference, results: Mapping[str, np.ndarray]) -> None:
                ((name, tokens),) = reference.outputs.items()
                if name in results:
                    counts[:] += agreeing(results[name], tokens)

            with open_program(artifact, program) as run:

                def run_and_compare(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
                    results = run(feeds)
                    if (reference := waiting.pop(id(feeds), None)) is not None:
                        compare(reference, results)
                    return results

                yield run_and_compare
                for reference in waiting.values():
                    compare(reference, run(reference.feeds))
            same, total = map(int, counts)
            if total:
                self.found.append(
                    TokenAgreement(program, same, total, expected.source, self._measured_on)
                )

        return opened


def agreeing(logits: np.ndarray, tokens: np.ndarray) -> tuple[int, int]:
    """How many tokens agree, and how many there are.

    Args:
        logits: [B, T, V] of the artifact, or [B, 1, V] where it computes the last token alone.
        tokens: [B, T], -1 where the position is hidden.
    """
    if logits.shape[1] == 1 < tokens.shape[1]:
        last = np.where(tokens >= 0, np.arange(tokens.shape[1]), 0).max(axis=1)
        tokens = tokens[np.arange(len(tokens)), last][:, None]
    counted = tokens >= 0
    # NaN is the largest number for argmax: such a token is never the model's.
    given = np.where(np.isnan(logits).any(axis=2), -2, logits.argmax(axis=2))
    return int((given == tokens)[counted].sum()), int(counted.sum())
