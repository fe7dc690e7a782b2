"""What a metric is: what it keeps of the model's outputs, and the loss it measures by that."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from omnigraph.program import TensorSpec

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Example:
    """One evaluation input of a program.

    Args:
        feeds: what the program takes, by name.
        data: what the evaluation data hold, perhaps with ``labels``.
        inputs: the program's, with their roles.
        outputs: the program's, with their roles.
        predicts: whether tokens follow from those before, so that logits can predict them; random
            ones do not.
    """

    feeds: Feeds
    data: Feeds
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    predicts: bool = True


class Known(Protocol):
    """What a metric keeps of the model's outputs for one example."""

    @property
    def rows(self) -> int:
        """How many samples it is; they count as independent of each other."""


@dataclass(frozen=True)
class Loss:
    """How much worse than the model.

    Args:
        metric: the name of what measured it.
        relative: how much worse, as a part of one: 0.005 is 0.5%.
        upper: the upper end of ``relative``: 95 of 100 sets of such samples give less. Infinite
            where it is not known, as for a single sample.
        rows: how many samples it was measured on.
        model: the model's own number, such as its perplexity; None where the metric has none.
        found: the same of the program.
    """

    metric: str
    relative: float
    upper: float = math.inf
    rows: int = 1
    model: float | None = None
    found: float | None = None

    def __str__(self) -> str:
        return f"{self.metric} {loss_text(self.to_dict())}"

    def to_dict(self) -> dict[str, Any]:
        """The loss as JSON-ready fields; an upper end that is not known is None."""
        numbers = {"model": self.model, "found": self.found}
        return {
            "metric": self.metric,
            **{name: number for name, number in numbers.items() if number is not None},
            "loss": self.relative,
            "loss_upper": self.upper if math.isfinite(self.upper) else None,
            "samples": self.rows,
        }


def loss_text(fields: Mapping[str, Any]) -> str:
    """A loss for a person, from its JSON fields: the numbers, the loss, and its upper end."""
    numbers = ""
    if "model" in fields:
        numbers = f"{fields['found']:.4f} for {fields['model']:.4f}, "
    return f"{numbers}{fields['loss']:+.3%} ({upper_text(fields['loss_upper'])})"


def upper_text(upper: float | None) -> str:
    """The upper end of a loss for a person; None is not known."""
    if upper is None:
        return "how much more other samples lose is not known"
    return f"below {upper:+.3%} at 95 of 100"


K = TypeVar("K", bound=Known)


class Metric(ABC, Generic[K]):
    """Measures how much worse a program is than the model, on examples.

    Attributes:
        name: on the command line, in Python and in manifests.
        expects: the programs and data that it fits, for a person.
        of_result: whether it says what an error does to the result that a person wants. If so,
            other programs with the same layers need not count.
        least_rows: with fewer samples, nothing is known of others.
        ranked_by: what `ranking` measures, where that is something else.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    of_result: ClassVar[bool] = True
    least_rows: ClassVar[int] = 2
    ranked_by: ClassVar[str] = ""

    @abstractmethod
    def known(self, example: Example, results: Feeds) -> K | None:
        """What is kept of the model's outputs; None where the metric does not fit the example.

        Args:
            results: the model's outputs by name.

        Raises:
            UsageError: the labels of the data do not fit the outputs.
        """

    @abstractmethod
    def loss(self, known: Sequence[K], results: Iterable[Feeds]) -> Loss:
        """The loss of a program on all examples.

        Args:
            known: of each example.
            results: the program's outputs for each example, in the same order, read once.
        """

    def ranking(self, known: Sequence[K], results: Iterable[Feeds]) -> Loss:
        """The loss by which layers are ordered, each quantized alone, on a part of the examples.

        A share is too coarse for that: most layers alone change none of a few samples.
        """
        return self.loss(known, results)

    def least(self, known: Sequence[K]) -> float:
        """The least upper end that these examples can show, where nothing changes."""
        return 0.0


def rows_of(known: Iterable[Known]) -> int:
    """How many samples some examples are."""
    return sum(one.rows for one in known)
