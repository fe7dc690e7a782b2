"""The limits that a module itself has: ranges that follow it, and errors that say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from omnigraph.errors import TraceError
from omnigraph.input_sets import affordable
from omnigraph.program import Case, Dim, Program, dim_terms, evaluate_dim, fit_sizes
from omnigraph.tracing.conditions import Condition, ends_within_reach, out_of_reach
from omnigraph.tracing.module_call import first_line, place_of
from omnigraph.tracing.sizes import Taken, Trials, long_size, sizes_taken
from omnigraph.tracing.specialization import argument, guilty_dimensions


def with_own_limits(program: Program) -> Program:
    """A program whose default ranges are those that its module takes, with its limits in words.

    The module is run at the least size of each dimension, and at a long one. A range that a person
    declared is left alone, but for an end that is open: that is as far as the module goes.

    Raises:
        TraceError: the module takes no two neighbouring sizes of a dimension, or takes two
            dimensions only together.
    """
    trials = Trials(program)
    if not program.example or program.to_graph is not None:
        return program
    if (base := trials.base()) is None or fit_sizes(program, base) != base:
        return program  # the error of the trace says what it takes
    declared = program.declared
    least = {n: d.min for n, d in program.dims.items() if n in base and n not in declared}
    shortest = fit_sizes(program, {**base, **least})
    others = shortest if trials.runs(shortest) else base
    found: dict[str, Taken] = {}
    for name in program.dim_names():
        own = program.dims.get(name, Dim())
        if others is shortest and _goes_on(trials, others, name, own):
            continue
        taken = sizes_taken(trials, base, name, own)
        if taken.step != 1:
            raise _stuck_error(trials, base, name, taken)
        if name in declared:
            high, beyond = (taken.high, taken.beyond) if own.max is None else (own.max, None)
            taken = replace(taken, low=own.min, below=None, high=high, beyond=beyond)
        found[name] = taken
    return _limited(program, trials, base, found)


def _goes_on(trials: Trials, others: Mapping[str, int], name: str, own: Dim) -> bool:
    """Whether the module takes a long size of a dimension, where nobody declared an end."""
    if own.max is not None and name in trials.program.declared:
        return True
    longest = {**others, name: long_size(trials.program, others, name, own)}
    if longest[name] <= others[name] or fit_sizes(trials.program, longest) != longest:
        return True
    return trials.runs(longest)


def _limited(
    program: Program, trials: Trials, base: Mapping[str, int], found: Mapping[str, Taken]
) -> Program:
    """The program with the ranges that were found, and those of sums that two of them share."""
    dims, notes = dict(program.dims), []
    for name, taken in found.items():
        own = dims.get(name, Dim())
        if taken.range != own:
            dims[name] = taken.range
            notes.append(_note(program, name, taken))
    limited = [name for name, taken in found.items() if taken.high is not None]
    for i, one in enumerate(limited):
        for other in limited[i + 1 :]:
            total = _shared_limit(trials, base, found[one], one, found[other], other)
            if total is not None:
                sum_ = _spelled(program, one, other)
                low_one, low_other = dims[one].min, dims[other].min
                dims[one] = Dim(low_one, total - low_other)
                dims[other] = Dim(low_other, total - low_one)
                dims[sum_] = Dim(low_one + low_other, total)
                notes.append(f"{sum_!r} of program {program.name!r} has at most {total}")
    return replace(program, dims=dims, limits=(*program.limits, *notes))


def _shared_limit(
    trials: Trials, base: Mapping[str, int], a: Taken, one: str, b: Taken, other: str
) -> int | None:
    """The limit of the sum of two dimensions, if it is their sum that is limited."""
    assert a.high is not None and b.high is not None
    total = a.high + base[other]
    if total != b.high + base[one] or trials.runs({**base, one: a.high, other: base[other] + 1}):
        return None
    return total if trials.runs({**base, one: a.high - 1, other: base[other] + 1}) else None


def _spelled(program: Program, one: str, other: str) -> str:
    """A sum of two dimensions as the inputs spell it."""
    spelled = {str(dim) for spec in program.inputs for dim in spec.shape}
    return f"{other} + {one}" if f"{other} + {one}" in spelled else f"{one} + {other}"


def _note(program: Program, name: str, taken: Taken) -> str:
    """``dimension 'length' of program … is 1:128, because at 129 the module fails, at …``."""
    edges = [(taken.low - 1, taken.below), (_after(taken.high), taken.beyond)]
    reasons = " and ".join(
        f"at {size} the module fails{place_of(error)} ({first_line(error)})"
        for size, error in edges
        if error is not None
    )
    return f"dimension {name!r} of program {program.name!r} is {taken.range}, because {reasons}"


def _after(size: int | None) -> int:
    return 0 if size is None else size + 1


def limited_by_module(program: Program, dim: str, high: int) -> Program | None:
    """The program with a limit that torch found in its trace, if the module fails beyond it.

    Args:
        dim: a dimension, or a sum.

    Returns:
        None where the module goes on beyond the limit, where that is not affordable to find out, or
        where a person declared more.
    """
    terms = [term for term in dim_terms(dim) if not term.isdigit()]
    ranges = {term: program.dims.get(term, Dim()) for term in terms}
    if any(d.max is not None and n in program.declared for n, d in ranges.items()):
        return None
    if dim in program.declared and program.dims[dim].max is not None:
        return None
    sizes = fit_sizes(program, {name: d.min for name, d in program.dims.items()}, default=1)
    sizes[terms[-1]] += high + 1 - evaluate_dim(dim, sizes)
    trials, half = Trials(program), {**sizes, terms[-1]: sizes[terms[-1]] // 2}
    # A module that fails does so early: what costs twice a large set is still tried.
    if not affordable(program, half) or (error := trials.error(sizes)) is None:
        return None
    sizes[terms[-1]] -= 1
    if not trials.runs(sizes):
        return None
    low = evaluate_dim(dim, {name: d.min for name, d in ranges.items()})
    taken = Taken(low, high, 1, high, beyond=error)
    dims = {**program.dims, dim: Dim(low, high)}
    return replace(program, dims=dims, limits=(*program.limits, _note(program, dim, taken)))


def within_reach(program: Program, conditions: Sequence[Condition]) -> Program:
    """The program with ranges that end before a condition of the trace that cannot be tried.

    What the module does beyond it is not known, and too large a set to be compared.

    Raises:
        TraceError: a person declared more, or the condition is one on several dimensions.
    """
    while (found := next(out_of_reach(program, conditions), None)) is not None:
        condition, dim, size = found
        own = program.dims.get(dim, Dim())
        declared = dim in program.declared and own.max is not None
        if declared or len(condition.dims) > 1:
            raise _reach_error(program, *found)
        ends = Dim(own.min, size - 1, own.multiple)
        note = (
            f"dimension {dim!r} of program {program.name!r} is {ends}, because the trace holds "
            f"where {condition}, and {size} is too large to be compared"
        )
        dims = {**program.dims, dim: ends}
        program = replace(program, dims=dims, limits=(*program.limits, note))
    return program


# -- errors ----------------------------------------------------------------------------------------


def size_error(program: Program, case: Case, error: Exception) -> TraceError:
    """The error for a module that does not run at sizes that its dimensions allow.

    It says which sizes the module takes, as far as they are found by running it.
    """
    trials = Trials(program)
    base = trials.base()
    allowed = "a run at " + ", ".join(f"{d}={r}" for d, r in program.dims.items())
    hint = "declare the sizes that the module takes, with --dynamic DIM=MIN:MAX"
    guilty: Sequence[str] = ()
    if base is not None:
        start = Case("base", base)
        guilty = guilty_dimensions(start, case, lambda other: not trials.runs(other.sizes))
    if base is not None and guilty:
        name = guilty[0]
        own = program.dims.get(name, Dim())
        least, most = min(own.min, case.sizes[name]), max(base[name], case.sizes[name])
        taken = sizes_taken(trials, base, name, Dim(least, max(own.max or 0, most)))
        if taken.step != 1:
            return _stuck_error(trials, base, name, taken)
        high = taken.high if taken.beyond is not None else own.max
        if high is not None and high < taken.low:
            high = None
        hint = f"declare the sizes that the module takes, with {argument(name, taken.low, high)}"
    dims = ", ".join(f"{dim}={case.sizes[dim]}" for dim in guilty or case.sizes)
    return TraceError(
        f"The module of program {program.name!r} does not run at {dims}, which its dimensions "
        f"allow{place_of(error)}",
        expected=allowed,
        found=first_line(error),
        hint=hint,
    )


def _reach_error(program: Program, condition: Condition, dim: str, size: int) -> TraceError:
    """The error for a condition of the trace that fails at sizes too large to be compared."""
    ends = {dim: size - 1} if len(condition.dims) == 1 else ends_within_reach(program, condition)
    least = {name: program.dims.get(name, Dim()).min for name in ends}
    ranges = ",".join(f"{name}={Dim(min(least[name], end), end)}" for name, end in ends.items())
    return TraceError(
        f"The trace of program {program.name!r} holds where {condition}, and dimension {dim!r} may "
        f"have {size}, where that is false: too large a set to be compared with the model",
        expected="sizes at which the condition is true, or that can be compared",
        found=f"{dim}={program.dims.get(dim, Dim())}",
        hint=f"declare smaller sizes: --dynamic {ranges}; or take the branch on the size out of "
        "the module",
    )


def _stuck_error(trials: Trials, base: Mapping[str, int], name: str, taken: Taken) -> TraceError:
    """The error for a dimension of which a module takes no two neighbouring sizes."""
    program, error = trials.program, taken.beyond
    assert error is not None
    what = f"The module of program {program.name!r} does not take any size of dimension {name!r}"
    if (other := _partner(trials, base, name)) is not None:
        return TraceError(
            f"{what} beside {other!r}{place_of(error)}: the two must agree",
            expected=f"two dimensions that vary by themselves, as {name!r} and {other!r} are named",
            found=first_line(error),
            hint=f"give both axes one name, {name!r}",
        )
    found = f"{base[name]} alone" if taken.step == 0 else f"multiples of {taken.step}"
    if taken.step and base[name] % taken.step:
        found = f"sizes that are {taken.step} apart, such as {base[name]}"
    fixed = f"fix it with {argument(name, base[name], base[name])}"
    return TraceError(
        f"{what} ({_axis_of(program, name)}){place_of(error)}",
        expected=f"a run at {name}={base[name] + 1}",
        found=f"{found}: {first_line(error)}",
        hint="; or ".join(filter(None, (program.axes_hint, fixed))),
    )


def _partner(trials: Trials, base: Mapping[str, int], name: str) -> str | None:
    """A dimension of the same size that has to change with this one."""
    names = trials.program.dim_names()
    alike = [other for other in names if other != name and base[other] == base[name]]
    larger = base[name] + 1
    found = (other for other in alike if trials.runs({**base, name: larger, other: larger}))
    return next(found, None)


def _axis_of(program: Program, name: str) -> str:
    axes = (
        f"axis {axis} of input {spec.name!r}"
        for spec in program.inputs
        for axis, dim in enumerate(spec.shape)
        if dim == name
    )
    return next(axes, "a part of a sum")
