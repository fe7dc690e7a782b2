"""The noise of quantization, and how much of it the numerical contract allows.

Rounding to a grid of step s makes an error that is close to uniform over a step: s/√12 in the root
mean square (Widrow & Kollár, Quantization Noise, section 4.2). Divided by the root mean square of
the values, it is the noise of an activation, e_x, or of a weight, e_w. A linear layer has the noise
of both, ``√(e_x² + e_w²)``; an embedding, whose rows are rounded, has that of its table. The noises
of different layers are close to independent, so they add up at the outputs as a random walk, to
about ``√(Σ e²)``. Residual paths, softmax and norms reduce it more often than they increase it. As
everywhere in the contract, twice that is allowed over all input sets, and twice as much in one of
them (or ``1 + 4/√n`` times in one of few rows n, whose mean is that uncertain), but no more than
half of an output's own size: beyond that, it is not the same model any more. Eight bits may change
all input sets together by a third at most, at which the cosine to the model's output is 0.95.

This bound is for the quantized Graph, which onnxruntime runs as it is. How far an artifact may be
from it, `omnigraph.contract.tolerance` says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from omnigraph.contract.flips import chosen_by_floats
from omnigraph.contract.graph_check import GraphRunner, rounded_activations
from omnigraph.contract.probabilities import least_scales
from omnigraph.contract.reference import HIDDEN_ROW, Reference
from omnigraph.contract.tolerance import (
    EIGHT_BIT_NOISE,
    Deviation,
    Tolerance,
    deviations,
    noises,
    output_scales,
    rows_of,
)
from omnigraph.errors import ContractError
from omnigraph.graph import Graph
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    linear_layers,
    tables,
)
from omnigraph.passes.analysis.quantization.scheme import ActivationGrid, Scheme
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid
from omnigraph.passes.insert_qdq import InsertQdq

_UNIFORM = 1 / math.sqrt(12)
#: Noise of float8 with three bits of mantissa: half a unit in the last place, uniform.
_FLOAT8_NOISE = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).eps) / 2 / math.sqrt(3)
#: The largest error of the same model, relative to the output's own size.
_MOST = 0.5
#: ... over all input sets, where no weight has fewer than eight bits.
_MOST_OF_EIGHT_BITS = 1 / 3


def noise_of(graph: Graph, insert: InsertQdq) -> tuple[float, float]:
    """The expected noise at the outputs of a Graph that ``insert`` will quantize.

    Returns:
        Relative to the outputs: the noise of what ``insert`` rounds, and of what each runtime
        rounds beside that, by itself or because the model does (quantization-aware training).
    """
    shown = 0.0
    # Where the model itself quantizes, another runtime may differ by a step.
    hidden = EIGHT_BIT_NOISE**2 * rounded_activations(graph)
    for linear in linear_layers(graph):
        scheme = insert.scheme_for(linear.layer)
        if scheme is None or linear.contraction < scheme.least_terms:
            continue
        shown += _weight_noise(linear, scheme.weights) ** 2
        if scheme.activations is not None:
            shown += _activation_noise(linear, scheme, insert.known.statistics) ** 2
        if scheme.runtime_group is not None:
            hidden += _group_noise(scheme.runtime_group) ** 2
    for table in tables(graph):
        scheme = insert.scheme_for(table.layer)
        if scheme is not None and scheme.tables is not None:
            assert table.weight.const_value is not None
            shown += _rounding_noise(table.weight.const_value.numpy().T, scheme.tables) ** 2
    return math.sqrt(shown), math.sqrt(hidden)


def _group_noise(terms: int) -> float:
    """Noise of 8-bit activations with a range for each group of ``terms``, as if normal.

    The largest of n normal numbers is about √(2 ln 2n) deviations (Boucheron et al., Concentration
    Inequalities, section 2.5), and a step is a 127th of it.
    """
    return math.sqrt(2 * math.log(2 * terms)) / 127 * _UNIFORM


def _weight_noise(linear: LinearLayer, grid: WeightGrid) -> float:
    if grid.dtype == ir.DataType.FLOAT8E4M3FN:
        return _FLOAT8_NOISE
    return _rounding_noise(linear.matrix, grid)


def _rounding_noise(weight: np.ndarray, grid: WeightGrid) -> float:
    """The noise of a weight [K, N] on its grid, relative to its root mean square."""
    size = math.sqrt(float(np.mean(np.square(weight), dtype=np.float64)))
    steps = _steps(weight, grid)
    step = math.sqrt(float(np.mean(np.square(steps), dtype=np.float64)))
    return step * _UNIFORM / size if size else 0.0


def _steps(weight: np.ndarray, grid: WeightGrid) -> np.ndarray:
    """The step of each scale of a weight [K, N] without clipping, which only reduces the error."""
    starts = np.arange(0, weight.shape[0], grid.block or weight.shape[0])
    least = np.minimum(np.minimum.reduceat(weight, starts, axis=0), 0)
    most = np.maximum(np.maximum.reduceat(weight, starts, axis=0), 0)
    low, high = grid.levels
    return (most - least if grid.has_zero_points else 2 * np.maximum(most, -least)) / (high - low)


def _activation_noise(linear: LinearLayer, scheme: Scheme, statistics: Statistics | None) -> float:
    grid = scheme.activations
    assert grid is not None
    if grid.dtype == ir.DataType.FLOAT8E4M3FN:
        return _FLOAT8_NOISE
    known = statistics.observations if statistics is not None else {}
    seen = known.get(linear.weight.name or "")
    if seen is None or not seen.rms:
        return EIGHT_BIT_NOISE
    return _range(grid, seen.least, seen.greatest) / 255 * _UNIFORM / seen.rms


def _range(grid: ActivationGrid, least: float, greatest: float) -> float:
    """The width of the whole observed range; a method clips it only where that has less error."""
    if grid.symmetric:
        return 2 * max(-least, greatest)
    return max(greatest, 0.0) - min(least, 0.0)


def check_quantized(
    graph: Graph,
    references: Sequence[Reference],
    expected: float,
    floats: Tolerance,
    program: str,
) -> Deviation:
    """The worst deviation of a quantized Graph, run by onnxruntime, from torch.

    Args:
        expected: the noise from `noise_of`.
        floats: the tolerance of fp32, for what stays in float.

    Raises:
        ContractError: it is larger than the noise explains.
    """
    runner = GraphRunner(graph)
    # Activations of a row that is hidden wholly may lie beyond every range that was observed.
    references = [r for r in references if r.case.name != HIDDEN_ROW]
    # What floats choose flips where they are nearly alike, however small the noise; how often, no
    # noise foretells. The artifact is compared by it, with the Graph that was compiled and torch.
    chosen = chosen_by_floats(graph)
    outputs = [
        {name: array for name, array in reference.outputs.items() if name not in chosen}
        for reference in references
    ]
    least = least_scales(graph, floats)
    scales = output_scales(outputs, least)
    limit = min(2 * expected, _most(graph)) + floats.rms
    found = [runner.run(reference.feeds) for reference in references]
    sets = [deviations(f, o, scales) for f, o in zip(found, outputs, strict=True)]
    worst = Deviation(0.0, 0.0)
    for output, noise in noises(found, outputs, least).items():
        position = max(range(len(sets)), key=lambda i: sets[i][output].rms)
        furthest = sets[position][output]
        # One set of few rows is further from the mean of all than they are together.
        factor = max(2.0, 1 + 4 / math.sqrt(rows_of(outputs[position][output])))
        single = min(factor * limit, _MOST + floats.rms)
        case = references[position].case
        if furthest.rms > single:
            where = f"on input set {case.name!r} {dict(case.sizes)}"
            raise _too_far(program, output, where, furthest.rms, single)
        if noise.pooled > limit:
            where = f"over all input sets, most on {case.name!r} {dict(case.sizes)}"
            raise _too_far(program, output, where, noise.pooled, limit)
        worst = worst.worst(Deviation(furthest.rms, noise.peak))
    return worst


def _most(graph: Graph) -> float:
    """The largest error over all input sets, by the fewest bits of a weight."""
    dtypes = (value.dtype for value in graph.graph.initializers.values())
    few = any(dtype is not None and dtype.is_integer() and dtype.bitwidth < 8 for dtype in dtypes)
    return _MOST if few else _MOST_OF_EIGHT_BITS


def _too_far(program: str, output: str, where: str, found: float, limit: float) -> ContractError:
    return ContractError(
        f"Quantization changes output {output!r} of program {program!r} too much {where}; "
        "no artifact was written",
        expected=f"an error of {limit:.2e} rms at most, relative to the output's rms",
        found=f"{found:.2e} rms",
        hint="calibrate on more of what the model is for (--calibration DATA), keep layers in float"
        " (--keep 'PATTERN'), or let --max-loss choose them",
    )
