"""The metrics of a loss, by name. Imports none of them: the command line lists their names.

A new metric is a class (`omnigraph.quantization.metrics.metric.Metric`) and its line here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from omnigraph.errors import UsageError, suggest

if TYPE_CHECKING:
    from omnigraph.quantization.metrics.metric import Metric

_HERE = "omnigraph.quantization.metrics"
#: By name, the class. Those of language models come first, the one that fits all comes last.
METRICS = {
    "perplexity": f"{_HERE}.perplexity:Perplexity",
    "next-token": f"{_HERE}.choices:NextToken",
    "accuracy": f"{_HERE}.choices:Accuracy",
    "cosine": f"{_HERE}.vectors:Cosine",
    "nearest-neighbour": f"{_HERE}.vectors:NearestNeighbour",
    "agreement": f"{_HERE}.agreement:Agreement",
}


def check_metric(name: str) -> None:
    """Refuse a name that is no metric's.

    Raises:
        UsageError: naming those that there are.
    """
    if name not in METRICS:
        raise UsageError(
            f"There is no metric {name!r}",
            expected=" or ".join(METRICS),
            hint=suggest(name, METRICS, "leave --metric out: what the program gives decides"),
        )


def metric_named(name: str) -> Metric[Any]:
    """The metric of a name.

    Raises:
        UsageError: there is none.
    """
    check_metric(name)
    module, _, kind = METRICS[name].partition(":")
    return getattr(import_module(module), kind)()
