"""All faults, and which of them are planted in which export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.faults import attention, masks, rounding, structure, weights
from benchmarks.faults.fault import Fault
from benchmarks.faults.models import MODELS
from benchmarks.faults.planting import has_place
from omnigraph.lowering import targets
from omnigraph.precision import AUTO

FAULTS: Sequence[Fault] = (
    *weights.FAULTS,
    *attention.FAULTS,
    *masks.FAULTS,
    *structure.FAULTS,
    *rounding.FAULTS,
)


def exports() -> list[tuple[str, str]]:
    """Every precision of every target, but for the choice among them."""
    return [
        (name, precision)
        for name, target in targets().items()
        if target.unusable() is None
        for precision in target.precisions
        if precision != AUTO
    ]


def planned(target: str, precision: str, turn: int) -> Iterator[tuple[Fault, str, str]]:
    """Each fault once in an export: when, and in which model; they change from turn to turn."""
    names = list(MODELS)
    for number, fault in enumerate(FAULTS):
        start = number + turn
        found = (
            (fault, fault.times[(start + t) % len(fault.times)], names[(start + m) % len(names)])
            for t in range(len(fault.times))
            for m in range(len(names))
        )
        for _, time, model in found:
            if has_place(fault, time, model, target, precision):
                yield fault, time, model
                break
