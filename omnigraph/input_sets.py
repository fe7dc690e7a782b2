"""The input sets at which a program's numbers are compared."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

from omnigraph.program import Case, Dim, Program, evaluate_dim, fit_sizes

#: The input sets of every program: padding, the sizes of the usual dimensions, and those that all
#: others have in turn. Where a range begins above such a size, ``steps`` times its least is added.
_ROWS = (
    ("short", "none", (1, 1, 0, 1), (1,), 0),
    ("long", "none", (1, 61, 7, 53), (59, 47, 37, 31, 23, 19), 3),
    ("batched", "none", (3, 8, 0, 12), (16, 20, 24, 28, 32, 36), 2),
    ("padded-right", "right", (4, 13, 0, 17), (11, 19, 15, 23, 21, 25), 1),
    ("padded-left", "left", (2, 5, 20, 3), (6, 10, 14, 18, 22, 26), 1),
)
#: Where not all dimensions can be long in one set: one, or none but the usual ones.
_FEWER_LONG = ((59, 7, 11, 13, 17, 19), (5, 11, 13, 17, 19, 23))
_USUAL = ("batch", "sequence", "past", "decoder_sequence")
#: A large set has at most this many positions: rows times lengths of an input. An attention over
#: as many keeps their square.
_MOST_POSITIONS = 2048
#: The elements of one input: as many as its positions have of 1,024 features. A batch of images or
#: of spectrograms, whose other axes are fixed, has few positions and many elements.
_MOST_ELEMENTS = 2048 * 1024
#: ... and at most this many products of a position with a weight: seconds on one core.
_MOST_PRODUCTS = 2 * 10**10
#: ... four times as many in a set that goes past a number: there is one or two, of one row.
_BEYOND_PRODUCTS = 4 * _MOST_PRODUCTS


#: Numbers that positions are compared with, of which a set goes past: at most so many.
_MOST_BEYOND = 2


def contract_cases(program: Program, compared: Collection[int] = ()) -> Sequence[Case]:
    """The input sets at which a program's numbers are compared: short, long, padded, batched.

    No two dimensions of a set agree by chance; each, whatever its name, is 1 (or its least) in one
    set, odd in some, even in others and long in one, since models branch on such things. Where it
    is affordable, each is at its declared maximum in one more. All are kept within the program's
    ranges.

    Args:
        compared: numbers that the trace compares its positions with, such as the width of a window;
            see `omnigraph.tracing.compared_positions`. A set has more positions than the largest
            of them that are not passed by the usual sets.
    """
    cases = []
    for seed, (name, padding, usual, others, steps) in enumerate(_ROWS):
        choices = (others, *_FEWER_LONG) if name == "long" else (others,)
        rows = [_row(program, usual, choice, steps) for choice in choices]
        sizes = next((row for row in rows if affordable(program, row)), rows[-1])
        cases.append(Case(name, sizes, padding, seed))
    for name, sizes in _largest(program, [case.sizes for case in cases]):
        cases.append(Case(name, sizes, seed=len(cases) + 1))
    tried = max((_positions(case.sizes) for case in cases), default=0)
    beyond = [_past(program, number + 5) for number in compared if number >= tried]
    for past in [sizes for sizes in beyond if sizes is not None][-_MOST_BEYOND:]:
        cases.append(Case(f"past-{_positions(past) - 5}", past, seed=len(cases) + 1))
    return cases


def _positions(sizes: Mapping[str, int]) -> int:
    """The largest length that positions of one set have."""
    return max((sizes.get(name, 0) for name in _USUAL[1:]), default=0)


def _past(program: Program, length: int) -> dict[str, int] | None:
    """A set with so many positions, of new tokens or else of the past; None where none can be."""
    least = fit_sizes(program, {}, default=0)
    for name in ("sequence", "decoder_sequence", "past"):
        sizes = fit_sizes(program, {**least, name: length})
        if sizes.get(name) == length and affordable(program, sizes, _BEYOND_PRODUCTS):
            return sizes
    return None


def affordable(program: Program, sizes: Mapping[str, int], products: int = _MOST_PRODUCTS) -> bool:
    """Whether a set of these sizes is small enough to be compared beside the usual ones.

    Args:
        products: of a position with a weight, at most.
    """
    positions = max(
        math.prod(evaluate_dim(dim, sizes) for dim in spec.shape if isinstance(dim, str))
        for spec in program.inputs
    )
    parameters = getattr(program.module, "parameters", tuple)
    weights = sum(weight.numel() for weight in parameters())
    elements = max(
        math.prod(evaluate_dim(d, sizes) if isinstance(d, str) else d for d in spec.shape)
        for spec in program.inputs
    )
    few = positions <= _MOST_POSITIONS and elements <= _MOST_ELEMENTS
    return few and positions * weights <= products


def _row(
    program: Program, usual: Sequence[int], others: Sequence[int], steps: int
) -> dict[str, int]:
    """The sizes of one input set, within the ranges, and no two alike where that can be."""
    names = program.dim_names()
    wanted = dict(zip(_USUAL, usual, strict=True))
    rest = [name for name in names if name not in wanted]
    wanted |= {name: others[i % len(others)] for i, name in enumerate(rest)}
    ranges = {name: program.dims.get(name, Dim()) for name in names}
    sizes = {name: _in_range(wanted[name], ranges[name], steps) for name in names}
    fitted = fit_sizes(program, sizes)
    for i, name in enumerate(names if steps else ()):
        before = {fitted[other] for other in names[:i]}
        near = (fitted[name] + step for step in (0, 2, -2, 4, -4, 1, -1))
        for size in near:
            moved = {**fitted, name: size}
            if size not in before and size in ranges[name] and fit_sizes(program, moved) == moved:
                fitted = moved
                break
    return fitted


def _in_range(size: int, allowed: Dim, steps: int) -> int:
    """A size moved into a range, odd or even as it was where the range has such a size."""
    moved = allowed.clamp(size + steps * allowed.min if size < allowed.min else size)
    if (moved - size) % 2 == 0 or not steps:
        return moved
    return next((near for near in (moved - 1, moved + 1) if near in allowed), moved)


def _largest(
    program: Program, tried: Sequence[Mapping[str, int]]
) -> Iterator[tuple[str, dict[str, int]]]:
    """The sets with dimensions at their declared maximum, those together that can be."""
    ends = {n: program.dims[n].max for n in program.dim_names() if n in program.dims}
    bounds = {n: most for n, most in sorted(ends.items(), key=lambda e: -(e[1] or 0)) if most}
    left = {n: most for n, most in bounds.items() if all(s[n] != most for s in tried)}
    least = fit_sizes(program, {}, default=0)
    together = dict(least)
    for name, most in left.items():
        wanted = {**together, name: most}
        if fit_sizes(program, wanted) == wanted and affordable(program, wanted):
            together = wanted
    if together != least:
        yield "longest", together
    for name, most in left.items():
        alone = fit_sizes(program, {**least, name: most})
        if together[name] != most == alone[name] and affordable(program, alone):
            yield f"longest-{name}", alone
