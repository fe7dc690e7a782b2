"""Layers that would lose much with 8-bit activations: they take the finer scheme."""

from __future__ import annotations

import numpy as np

from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.product_error import STRENGTHS, Product
from omnigraph.passes.calibrated_pass import QuantizationFacts, QuantizingPass
from omnigraph.passes.smooth_activations import SmoothActivations


def forecast(pass_: QuantizingPass, graph: Graph) -> dict[str, float]:
    """What each layer that a pass quantizes will lose, by module path.

    Before activations are smoothed, it is what is lost after it. Layers of which nothing was
    observed, or whose scheme is not by ranges, are left out.
    """
    found: dict[str, float] = {}
    statistics = pass_.known.statistics
    for linear in pass_.taken(graph) if statistics is not None else ():
        scheme = pass_.scheme_for(linear.layer)
        seen = statistics.observations.get(linear.weight.name or "")  # type: ignore[union-attr]
        if scheme is None or not scheme.needs_ranges or seen is None:
            continue
        product = Product(seen, linear.matrix)
        if isinstance(pass_, SmoothActivations):
            error = product.best(scheme, STRENGTHS).error
        else:
            ones = np.ones(linear.contraction, np.float32)
            error = product.error(scheme.activations, scheme.weights, ones)
        found[linear.layer] = max(error, found.get(linear.layer, 0.0))
    return found


def with_finer(
    pass_: QuantizingPass, graph: Graph, facts: QuantizationFacts, most: float
) -> QuantizationFacts:
    """The facts, with the finer scheme chosen for layers that lose more than ``most``.

    Layers that have a choice keep it, so that all programs of a target have the same.
    """
    errors = forecast(pass_, graph)
    sensitive = [layer for layer, error in errors.items() if error > most]
    finer = {
        layer: pass_.scheme.finer
        for layer in sensitive
        if pass_.scheme.finer is not None and layer not in facts.choices
    }
    return QuantizationFacts(
        facts.statistics, facts.rounded, {**facts.choices, **finer}, {**facts.errors, **errors}
    )
