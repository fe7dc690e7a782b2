"""Biases after their correction: within what the rounding of their weights can take away."""

from __future__ import annotations

import numpy as np

from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import bias_of, linear_layers
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.passes.correct_biases import CORRECTED_SUFFIX, CorrectBiases


def _step(grid: WeightGrid) -> float:
    """The widest step of a grid, relative to the largest weight."""
    if not grid.is_integer:
        return 2.0**-3  # of float8 with three bits of mantissa
    low, high = grid.levels
    return 2 / (high - low)


def check_corrected(
    before: Graph, after: Graph, pass_: CorrectBiases, facts: QuantizationFacts
) -> None:
    """Refuse a bias that moved further than a step of each weight, times the mean it multiplies.

    Rounding to the nearest is off by half a step at most; with compensation, and where a range is
    clipped, by more than that, but not in one direction.

    Raises:
        ContractError: naming the bias.
    """
    known = after.graph.initializers
    seen = facts.statistics.observations if facts.statistics is not None else {}
    for linear in linear_layers(before):
        found = bias_of(linear.node)
        bias = found[0].inputs[found[1]] if found is not None else None
        twin = known.get(f"{bias.name}{CORRECTED_SUFFIX}") if bias is not None else None
        scheme = facts.choices.get(linear.layer, pass_.scheme)
        observed = seen.get(linear.weight.name or "")
        if twin is None or bias is None or scheme is None or observed is None:
            continue
        assert bias.const_value is not None and twin.const_value is not None
        assert linear.weight.const_value is not None
        weight = linear.weight.const_value.numpy()
        step = _step(scheme.weights) * np.abs(weight).max(axis=1 - linear.channel_axis)
        bound = np.abs(observed.means).sum() * step + 1e-6 * np.abs(bias.const_value.numpy())
        moved = np.abs(twin.const_value.numpy() - bias.const_value.numpy())
        if (moved > bound).any():
            channel = int(np.argmax(moved - bound))
            raise ContractError(
                f"Bias {bias.name!r} is corrected by more than rounding explains",
                expected=f"at most {float(bound[channel]):.2e} in channel {channel}",
                found=f"{float(moved[channel]):.2e}",
                hint="the pass that corrects biases computes another mean, or another weight",
            )
