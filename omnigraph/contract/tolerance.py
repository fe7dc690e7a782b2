"""The numerical contract: how far an output may be from the torch model in fp32, and why so far.

The measure. For each output, over every element of every input set: the root mean square of the
error, and its largest magnitude, both divided by the root mean square of the reference. A wrong
element is about 1 in the second measure, however many others are right.

The tolerance. A computation rounds once per operation on its longest path. Roundings are close to
independent, so their errors add like a random walk: after ``depth`` roundings of unit roundoff
``u`` the relative error is about ``u * sqrt(depth / 3)`` (Higham, Accuracy and Stability of
Numerical Algorithms, 2nd ed., sections 2.8 and 3.5: the statistical form of the worst case n*u).
We allow ``2 * u * sqrt(depth)``: 3.5 times that, for the kernels' approximations of exp, erf and
tanh, and for the reference's own roundings. The largest of a million such errors is 5 standard
deviations out, and rows of an output differ in scale, so a single element may have 16 times the
bound.

For fp32, sums are also accumulated in fp32. A dot product of ``K`` terms is summed in 16 lanes,
each of which rounds K/16 times, and then over the lanes, which rounds 4 times more: its relative
error is that of ``K/16 + 4`` roundings, ``sqrt(K/16 + 4)``. The half types are accumulated in fp32,
so only the rounding of stored values counts.

Where activations are rounded to eight bits or a half type, two correct computations may differ by
whole steps: a sum in another order can round to the next value, and all behind it follows. This is
another draw of the noise of rounding, no more of it. So that noise is measured, not assumed: of the
Graph, run with the rounding that its runtime does, against the Graph without any (`Noise`). An
artifact may be 1.5 times as far from the unrounded Graph: runtimes keep some results wider than the
emulation does, or round some once more. The root mean square of n independent errors is itself off
by about 1/√(2n), so few rows are allowed more: 4/√n of it. One input set may be twice as far as
that of the worst set: this is a largest value already, and needs no more for few rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

#: Unit roundoff of each stored type (IEEE 754-2019 table 3.5; bfloat16 has 8 bits of precision).
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
#: The noise of an activation quantized to eight bits, relative to its root mean square, where its
#: range is not known: eight root mean squares to either side, where five hold normal numbers.
EIGHT_BIT_NOISE = 16 / 255 / math.sqrt(12)
#: Types of codes, which stand for floats: they are compared as numbers. All other integers, and
#: booleans, are compared for equality.
_CODES = (np.dtype(np.int8), np.dtype(np.uint8))
#: The share of floats that sums in another order round to the next code.
_TIES = 1e-3
#: The least deviation of integers and booleans of which one is wrong, so that no tolerance of
#: floats hides it among many.
_ONE_WRONG = 1e-2
#: Two draws of one noise are alike; what a runtime rounds is not all that an emulation rounds.
_ANOTHER_DRAW = 1.5
_NO_SCALES: Mapping[str, float] = MappingProxyType({})
#: Elements that are compared at a time.
_SLICE = 1 << 20


@dataclass(frozen=True)
class Tolerance:
    """The largest RMS and the largest single error, relative to the reference's RMS."""

    rms: float
    peak: float

    @classmethod
    def for_precision(cls, precision: str, *, depth: int, contraction: int) -> Tolerance:
        """The tolerance of a computation, by the reasoning at the top of this module.

        Args:
            precision: "fp32", "fp16" or "bf16": the coarsest type that anything is rounded to.
            depth: roundings on the longest path from an input to an output.
            contraction: terms of the longest dot product.
        """
        unit = UNIT_ROUNDOFF[precision]
        if precision == "fp32":
            unit *= math.sqrt(contraction / 16 + 4)
        rms = 2 * unit * math.sqrt(max(1, depth))
        return cls(rms, 16 * rms)

    def with_rounded_activations(self, count: int) -> Tolerance:
        """The tolerance of a computation that also quantizes ``count`` activations."""
        rms = self.rms + 2 * EIGHT_BIT_NOISE * math.sqrt(count)
        return Tolerance(rms, 16 * rms) if count else self

    def to_dict(self) -> dict[str, float]:
        """The bounds as JSON-ready fields."""
        return {"rms": self.rms, "peak": self.peak}


@dataclass(frozen=True)
class Deviation:
    """How far one output was from its reference; infinite where a shape or a NaN differs."""

    rms: float
    peak: float

    def within(self, tolerance: Tolerance) -> bool:
        """Whether both measures are within the tolerance (a NaN never is)."""
        return self.rms <= tolerance.rms and self.peak <= tolerance.peak

    def worst(self, other: Deviation) -> Deviation:
        """The larger of each measure."""
        return Deviation(max(self.rms, other.rms), max(self.peak, other.peak))


def deviation(found: np.ndarray, reference: np.ndarray, scale: float | None = None) -> Deviation:
    """The deviation of one output from its reference, computed in float64.

    Equal infinities agree. Another shape, a NaN, or an infinity against anything else is an
    infinite deviation.

    Args:
        scale: divides the errors; None is the root mean square of this reference.
    """
    if found.shape != reference.shape:
        return Deviation(math.inf, math.inf)
    if reference.size == 0:
        return Deviation(0.0, 0.0)
    if is_exact(reference.dtype):
        wrong = float(np.mean(found != reference))
        wrong = max(wrong, _ONE_WRONG) if wrong else 0.0
        return Deviation(wrong, wrong)
    total = squares = peak = 0.0
    for ref, out in zip(_slices(reference), _slices(found), strict=True):
        same = (ref == out) & np.isinf(ref)
        error = np.subtract(out, ref, where=~same, out=np.zeros_like(ref))
        if not np.isfinite(error).all():
            return Deviation(math.inf, math.inf)
        total += float(error @ error)
        squares += float(np.square(ref[np.isfinite(ref)]).sum())
        peak = max(peak, float(np.abs(error).max()))
    if total == 0.0:
        return Deviation(0.0, 0.0)
    if scale is None:
        scale = math.sqrt(squares / reference.size)
    if scale == 0.0:
        return Deviation(math.inf, math.inf)
    return Deviation(math.sqrt(total / reference.size) / scale, peak / scale)


def is_exact(dtype: np.dtype) -> bool:
    """Whether elements of a type are right or wrong: integers that are no codes, and booleans."""
    return dtype.kind in "biu" and dtype not in _CODES


def wrong_elements(found: np.ndarray, expected: np.ndarray) -> int:
    """The elements that differ; all where the shapes do."""
    if found.shape != expected.shape:
        return max(1, expected.size)
    return int(np.count_nonzero(found != expected))


def most_wrong(flips: int, count: int) -> int:
    """How many of ``count`` integers or booleans, which rounded floats choose, may be wrong.

    A choice flips where two floats are nearly alike. Few of many choices are, and hardly depend on
    each other, so the number of flips is close to Poisson's. An emulation of the rounding that saw
    k flips has a mean of ``m = k + 2√k + 3`` at most, at 95 of 100: the deviation of k is √k, and a
    mean of 3 still gives none once in 20 times. Another draw with the mean m is at most
    ``m + 3√m``, three deviations more, but for once in 200 times. Where none was seen, that is 8.

    Half of the elements at most: beyond that, it is not the same model any more.
    """
    mean = flips + 2 * math.sqrt(flips) + 3
    return min(int(mean + 3 * math.sqrt(mean)), half_of(count))


def half_of(count: int) -> int:
    """The most elements of so many that may be wrong; of one alone nothing is known."""
    return (count + 1) // 2


def _slices(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in float64, a slice at a time, so that a large output is not copied whole."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _SLICE):
        yield flat[start : start + _SLICE].astype(np.float64)


@dataclass(frozen=True)
class Noise:
    """How far outputs moved over all input sets, relative to the root mean square of an output.

    Args:
        pooled: the root mean square of all errors.
        single: that of the input set that moved most.
        peak: the largest error.
        rows: rows of the output in all input sets, whose errors are close to independent.
    """

    pooled: float
    single: float
    peak: float
    rows: int

    def explains(self, found: Noise, exact: Tolerance) -> bool:
        """Whether another draw of this noise may be as large as ``found``."""
        limit = self.limit(exact)
        return (
            found.pooled <= limit.pooled
            and found.single <= limit.single
            and found.peak <= limit.peak
        )

    def limit(self, exact: Tolerance) -> Noise:
        """The largest noise that another draw may have; see the top of this module."""
        factor = _ANOTHER_DRAW * (1 + 4 / math.sqrt(max(1, self.rows)))
        return Noise(
            factor * self.pooled + exact.rms,
            2 * _ANOTHER_DRAW * self.single + exact.rms,
            max(2 * self.peak, 8 * factor * self.pooled) + exact.peak,
            self.rows,
        )


def noises(
    found: Sequence[Mapping[str, np.ndarray]],
    expected: Sequence[Mapping[str, np.ndarray]],
    least: Mapping[str, float] = _NO_SCALES,
) -> dict[str, Noise]:
    """The noise of each output, over the input sets; ``least`` as in `output_scales`."""
    scales = output_scales(expected, least)
    made = {}
    for name in expected[0] if expected else ():
        each = [
            deviation(f[name], e[name], scales[name]) for f, e in zip(found, expected, strict=True)
        ]
        sizes = [e[name].size for e in expected]
        squares = sum(d.rms**2 * size for d, size in zip(each, sizes, strict=True))
        rows = sum(rows_of(e[name]) for e in expected)
        made[name] = Noise(
            math.sqrt(squares / max(1, sum(sizes))),
            max(d.rms for d in each),
            max(d.peak for d in each),
            rows,
        )
    return made


def rows_of(output: np.ndarray) -> int:
    """The rows of an output, along its last axis: at least one."""
    return max(1, output.size // max(1, output.shape[-1] if output.ndim else 1))


def with_ties(tolerance: Tolerance, expected: np.ndarray, scale: float) -> Tolerance:
    """A tolerance for codes: one in a thousand floats is near enough the middle of two codes."""
    if expected.dtype not in _CODES or not scale:
        return tolerance
    return Tolerance(
        max(tolerance.rms, math.sqrt(_TIES) / scale), max(tolerance.peak, 1.001 / scale)
    )


def with_codes(
    noise: Mapping[str, Noise], expected: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, Noise]:
    """The noise of each output, and of those that are codes at least that of rounding to them.

    A float at the middle between two codes becomes either.
    """
    scales = output_scales(expected)
    return {
        name: Noise(
            max(found.pooled, 1 / math.sqrt(12) / scales[name]),
            max(found.single, 1 / math.sqrt(12) / scales[name]),
            max(found.peak, 1 / scales[name]),
            found.rows,
        )
        if expected[0][name].dtype in _CODES and scales[name]
        else found
        for name, found in noise.items()
    }


def output_scales(
    references: Sequence[Mapping[str, np.ndarray]], least: Mapping[str, float] = _NO_SCALES
) -> dict[str, float]:
    """The root mean square of each output over all input sets, which divides its errors.

    One input set alone may have too few numbers, or too small ones, to give a scale.

    Args:
        least: the least scale of each output of probabilities, whose errors are not relative to
            them; see `omnigraph.contract.probabilities`.
    """
    scales = {}
    for name in references[0] if references else ():
        arrays = [reference[name] for reference in references]
        squares = sum(float(np.square(s[np.isfinite(s)]).sum()) for a in arrays for s in _slices(a))
        rms = math.sqrt(squares / max(1, sum(array.size for array in arrays)))
        scales[name] = rms
        if name in least:
            through = _of_probabilities(arrays, shifted=least[name] == 0)
            scales[name] = max(rms, least[name], through)
    return scales


def _of_probabilities(arrays: Sequence[np.ndarray], *, shifted: bool) -> float:
    """The error of probabilities for each unit of relative error of the log-odds.

    Args:
        shifted: whether they are of a softmax, which has small ones exactly, and computes log-odds
            but for a shift.
    """
    count, total, squares, steepest = 0, 0.0, 0.0, 0.0
    least = float(np.finfo(np.float32).tiny) if shifted else 2.0**-24
    for array in arrays:
        slopes = 0.0
        for part in _slices(array):
            y = part[part > 0] if shifted else part[np.isfinite(part)]
            y = np.clip(y, least, 1 - 2.0**-24)
            odds, slope = np.log(y / (1 - y)), y * (1 - y)
            count += y.size
            total += float(odds.sum())
            squares += float(odds @ odds)
            slopes += float(slope @ slope)
            steepest = max(steepest, float(slope.max(initial=0)) / 8)
        steepest = max(steepest, math.sqrt(slopes / max(1, array.size)))
    mean = total / max(1, count) if shifted else 0.0
    return min(1.0, math.sqrt(max(0.0, squares / max(1, count) - mean**2)) * steepest)


def deviations(
    found: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    scales: Mapping[str, float] | None = None,
) -> dict[str, Deviation]:
    """The deviation of each output of a program, relative to ``scales`` where they are given."""
    return {
        name: deviation(found[name], expected, scales[name] if scales else None)
        for name, expected in reference.items()
    }
