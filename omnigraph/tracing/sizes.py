"""The sizes that a program's torch module takes, found by running it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from omnigraph.input_sets import affordable
from omnigraph.program import Case, Dim, Program, fit_sizes
from omnigraph.tracing.module_call import run

#: Sizes a program is traced at: different, coprime, and none of them 0 or 1, which torch.export
#: would make constants (its "0/1 specialization").
_TRACE_SIZES = (2, 7, 5, 3, 11, 13, 17, 19)
#: Long sizes that a module is tried at. Primes: a module that takes only the multiples of a number
#: does not take them.
_LONG = (2039, 1021, 509, 251, 127, 61, 31)
#: The largest step between the sizes that a module takes which is looked for.
_MOST_STEP = 64


def example_case(program: Program) -> Case:
    """The sizes a program is traced at: all different where the ranges allow, and none below 2.

    A range that begins higher, as for a convolution's samples, is traced at twice its least, where
    no length that is computed from it is 1.
    """
    names = program.dim_names()
    sizes = dict(zip(names, _TRACE_SIZES, strict=False))
    for name, usual in sizes.items():
        if (least := program.dims.get(name, Dim()).min) > usual:
            sizes[name] = 2 * least + 1
    sizes = fit_sizes(program, sizes)
    for name in names:
        sizes[name] = max(sizes[name], 2)
    return Case("trace", sizes)


class Trials:
    """Runs a program's module at sizes, each once, and keeps the errors.

    Args:
        program: what to run.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._errors: dict[tuple[tuple[str, int], ...], Exception | None] = {}

    def error(self, sizes: Mapping[str, int]) -> Exception | None:
        """What the module raises at these sizes, or None if it runs."""
        key = tuple(sorted(sizes.items()))
        if key not in self._errors:
            try:
                run(self.program, self.program.make_inputs(Case("trial", dict(sizes))))
                self._errors[key] = None
            except Exception as error:
                self._errors[key] = error
        return self._errors[key]

    def runs(self, sizes: Mapping[str, int]) -> bool:
        """Whether the module runs at these sizes."""
        return self.error(sizes) is None

    def base(self) -> dict[str, int] | None:
        """Sizes at which the module runs: those of the trace, or of its example; None if neither.

        An example is also tried where it is outside of the declared ranges.
        """
        names = self.program.dim_names()
        own = {dim: size for dim, size in self.program.example.items() if dim in names}
        example = {**fit_sizes(self.program, {}), **own}
        fitted = fit_sizes(self.program, self.program.example)
        choices = (dict(example_case(self.program).sizes), fitted, example)
        return next((sizes for sizes in choices if self.runs(sizes)), None)


@dataclass(frozen=True)
class Taken:
    """The sizes of one dimension that a module takes, the others being as they were.

    Args:
        low: the least.
        high: the largest, or None where none was found.
        step: how far apart they are: 1, or another number for multiples; 0 where there is one only.
        base: a size that it takes.
        below: what the module raises below ``low``, if that is known.
        beyond: what the module raises above ``high``, or between the sizes.
    """

    low: int
    high: int | None
    step: int
    base: int
    below: Exception | None = None
    beyond: Exception | None = None

    @property
    def range(self) -> Dim:
        """The sizes as a range, which leaves the step out."""
        return Dim(self.low, self.high)


def sizes_taken(trials: Trials, base: Mapping[str, int], name: str, within: Dim) -> Taken:
    """The sizes of a dimension that a module takes, within a range.

    Args:
        base: sizes at which it runs; the other dimensions keep theirs.
        within: the least and the largest that are of interest; where there is no largest, a size
            is tried that is long, and affordable.
    """

    def error(size: int) -> Exception | None:
        return trials.error({**base, name: size})

    def runs(size: int) -> bool:
        return error(size) is None

    own = base[name]
    if not any(runs(size) for size in (own - 1, own + 1) if size >= within.min):
        step = next((k for k in range(2, _MOST_STEP + 1) if runs(own + k)), 0)
        return Taken(own, own if step == 0 else None, step, own, beyond=error(own + 1))
    low = min(within.min, own) if runs(min(within.min, own)) else last(runs, own, within.min)
    top = long_size(trials.program, base, name, within)
    high = None if top <= own or runs(top) else last(runs, own, top)
    if low <= within.min and high is None:
        return Taken(low, within.max, 1, own)
    below = error(low - 1) if low > within.min else None
    if high is None:
        return Taken(low, within.max, 1, own, below)
    return Taken(low, high, 1, own, below, error(high + 1))


def last(runs: Callable[[int], bool], good: int, bad: int) -> int:
    """The size nearest to ``bad`` that runs, where all between it and ``good`` do."""
    while abs(bad - good) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if runs(middle) else (good, middle)
    return good


def long_size(program: Program, sizes: Mapping[str, int], name: str, within: Dim) -> int:
    """The longest size of a dimension that is affordable to try beside these; 0 if none is."""
    choices = (*_LONG, 0) if within.max is None else (within.max, *_LONG, 0)
    allowed = (size for size in choices if size in within)
    tried = (n for n in allowed if affordable(program, {**sizes, name: n}))
    return next(tried, 0)
