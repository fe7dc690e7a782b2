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

Where activations are quantized to eight bits, two correct computations may differ by whole steps:
a sum in another order can round to the next quantized value. This adds at most the noise of the
rounding itself once more, a step over √12 for each value (`EIGHT_BIT_NOISE`), as independent as
other roundings (see `omnigraph.quantization.noise`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Unit roundoff of each stored type (IEEE 754-2019 table 3.5; bfloat16 has 8 bits of precision).
UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
#: The noise of an activation quantized to eight bits, relative to its root mean square, where its
#: range is not known: eight root mean squares to either side, where five hold normal numbers.
EIGHT_BIT_NOISE = 16 / 255 / math.sqrt(12)
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
    if reference.dtype.kind in "biu":
        wrong = float(np.mean(found != reference))
        return Deviation(wrong, float(wrong > 0))
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


def _slices(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in float64, a slice at a time, so that a large output is not copied whole."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, _SLICE):
        yield flat[start : start + _SLICE].astype(np.float64)


def output_scales(references: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The root mean square of each output over all input sets, which divides its errors.

    One input set alone may have too few numbers, or too small ones, to give a scale.
    """
    scales = {}
    for name in references[0] if references else ():
        arrays = [reference[name] for reference in references]
        squares = sum(float(np.square(s[np.isfinite(s)]).sum()) for a in arrays for s in _slices(a))
        scales[name] = math.sqrt(squares / max(1, sum(array.size for array in arrays)))
    return scales


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
