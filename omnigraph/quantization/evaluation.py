"""How much worse a compiled program is than the model, by one of the metrics, on evaluation data.

`omnigraph.quantization.metrics.registry` lists the metrics. Where none is asked for, what a program
gives decides: perplexity for logits whose tokens follow from each other, cosine for an embedding
(one vector for each sample), and agreement for all others. An example that the metric says nothing
of, such as one without a target, does not count where another one does.

Each row of a batch is a sample of its own, by which the upper end of the loss is estimated
(`omnigraph.quantization.confidence`). Rows count as independent of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec
from omnigraph.quantization.metrics.metric import Example, Feeds, Loss, Metric, rows_of
from omnigraph.quantization.metrics.registry import METRICS, metric_named
from omnigraph.quantization.metrics.vectors import one_vector_a_sample

Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A program's evaluation inputs, and what a metric keeps of the model's outputs for each.

    Args:
        metric: measures the loss.
        feeds: inputs by name, of each example.
        known: of each example.
    """

    metric: Metric[Any]
    feeds: Sequence[Feeds]
    known: Sequence[Any]

    @property
    def rows(self) -> int:
        """How many samples tell how much samples differ."""
        return rows_of(self.known)

    @property
    def least(self) -> float:
        """The least upper end of a loss that these samples can show."""
        return self.metric.least(self.known)

    def loss(self, run: Run) -> Loss:
        """Run a program on all examples, and compare it with the model.

        Args:
            run: the program: inputs by name to outputs by name.
        """
        return self.metric.loss(self.known, map(run, self.feeds))

    def ranking(self, run: Run, most: int) -> Loss:
        """The loss by which layers are ordered, on the first ``most`` examples."""
        return self.metric.ranking(self.known[:most], map(run, self.feeds[:most]))


def default_metrics(outputs: Sequence[TensorSpec]) -> list[Metric[Any]]:
    """What judges a program where no metric is asked for: the first that fits an example."""
    names = ["perplexity", *(["cosine"] if one_vector_a_sample(outputs) else []), "agreement"]
    return [metric_named(name) for name in names]


def evaluation_of(
    run: Run, examples: Iterable[Example], metrics: Sequence[Metric[Any]]
) -> Evaluation | None:
    """An evaluation by the first of some metrics that fits an example; None where none does.

    Args:
        run: the model.

    Raises:
        UsageError: the labels of the data do not fit the outputs.
    """
    kept: list[list[tuple[Feeds, Any]]] = [[] for _ in metrics]
    for example in examples:
        results = run(example.feeds)
        for pairs, metric in zip(kept, metrics, strict=True):
            if (known := metric.known(example, results)) is not None:
                pairs.append((example.feeds, known))
                break
    for pairs, metric in zip(kept, metrics, strict=True):
        if pairs:
            feeds, found = zip(*pairs, strict=True)
            return Evaluation(metric, feeds, found)
    return None


def fitting(run: Run, examples: Iterable[Example]) -> list[str]:
    """The names of the metrics that fit the first example."""
    return [
        name
        for example in islice(examples, 1)
        for name in METRICS
        if metric_named(name).known(example, run(example.feeds)) is not None
    ]


def misfit(
    metric: Metric[Any], programs: Sequence[str], source: str, fits: Sequence[str]
) -> UsageError:
    """The error of a metric that fits none of a model's programs.

    Args:
        programs: what each gives, for a person.
        source: of the examples, for a person.
        fits: the names of the metrics that fit one of them.
    """
    return UsageError(
        f"Metric {metric.name!r} does not fit the model's programs on {source}",
        expected=metric.expects,
        found="; ".join(programs),
        hint=f"--metric {' or '.join(fits)}; without --metric, what a program gives decides",
    )
