"""What torch took for granted of the sizes while it traced: its guards."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sympy

from omnigraph.graph import Graph
from omnigraph.input_sets import affordable
from omnigraph.program import Case, Dim, Program, dim_terms, evaluate_dim, fit_sizes
from omnigraph.tracing.module_call import NOT_THE_MODEL
from omnigraph.tracing.sizes import example_case, last

#: Where a traced Graph keeps its conditions.
_META = "omnigraph.conditions"
#: How many sizes on either side of the traced one are looked at, one by one.
_NEAR = 64
#: Sizes beyond those.
_FAR = (128, 512, 2048, 16384)
#: At most this many sets are tried for conditions.
_MOST_CASES = 16
_RELATIONS = {"Equality": "==", "Unequality": "!="}


@dataclass(frozen=True)
class Condition:
    """A comparison of sizes on which the traced module decided something.

    Args:
        text: in the dimensions of the program: ``sequence > 3``.
        place: file and line of the model, or "" where that is not known.
        dims: the dimensions in it.
        holds: whether it is true at some sizes.
        numbers: those that it compares sizes with, or divides them by.
    """

    text: str
    place: str
    dims: tuple[str, ...]
    holds: Callable[[Mapping[str, int]], bool]
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.text!r}" + (f" at {self.place}" if self.place else "")


def keep_conditions(graph: Graph, conditions: Sequence[Condition]) -> None:
    """Keep in a traced Graph what its trace took for granted. It is not written to a file."""
    graph.meta[_META] = tuple(conditions)


def conditions_of(graph: Graph) -> tuple[Condition, ...]:
    """What the trace of a Graph took for granted."""
    found: tuple[Condition, ...] = graph.meta.get(_META, ())
    return found


def read_conditions(sizes: Sequence[tuple[str, Any]], program: Program) -> Iterator[Condition]:
    """The guards that torch set while it traced, each once.

    Args:
        sizes: each dimension or sum with its symbolic size.
    """
    symbols: dict[sympy.Symbol, str] = {}
    for dim, size in sizes:
        expression = size.node._expr
        if isinstance(expression, sympy.Symbol):
            symbols.setdefault(expression, dim)
    if not symbols:
        return
    seen = set()
    for guard in sizes[0][1].node.shape_env.guards:
        expression = guard.expr
        if expression in seen or not expression.free_symbols <= symbols.keys():
            continue
        seen.add(expression)
        dims = [t for s in expression.free_symbols for t in dim_terms(symbols[s])]
        own = tuple(name for name in program.dim_names() if name in dims)
        numbers = tuple(sorted(int(n) for n in expression.atoms(sympy.Integer) if n > 1))
        text, place = _text(expression, symbols), _place(guard.sloc)
        yield Condition(text, place, own, _test(expression, symbols), numbers)


def _test(expression: Any, symbols: Mapping[Any, str]) -> Callable[[Mapping[str, int]], bool]:
    used = {s: symbols[s] for s in expression.free_symbols}

    def holds(sizes: Mapping[str, int]) -> bool:
        given = {s: sympy.Integer(evaluate_dim(dim, sizes)) for s, dim in used.items()}
        return bool(expression.xreplace(given) != sympy.false)

    return holds


def _text(expression: Any, symbols: Mapping[Any, str]) -> str:
    """A comparison as Python spells it, in the dimensions of the program."""
    names = {str(s): f"({dim})" if " " in dim else dim for s, dim in symbols.items()}
    relation = getattr(expression, "rel_op", None)
    text = str(expression)
    if relation is not None:
        text = f"{expression.lhs} {relation} {expression.rhs}"
    text = re.sub(r"\bMod\((\w+), (\w+)\)", r"\1 % \2", text)
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), text)


def _place(location: Any) -> str:
    """File and line of the model, from where torch says that a guard arose."""
    frame = location.framework_loc
    if isinstance(frame, traceback.FrameSummary) and not frame.filename.startswith(NOT_THE_MODEL):
        return f"{Path(frame.filename).name}:{frame.lineno}"
    return ""


def boundary_cases(
    program: Program, conditions: Sequence[Condition], tried: Sequence[Case]
) -> list[Case]:
    """Input sets just past each condition, where the module may do something else.

    Sets that are not affordable, and those that ``tried`` has, are left out.
    """
    found: dict[tuple[str, int], Case] = {}
    for condition, dim, sizes in _boundaries(program, conditions):
        size = sizes[dim]
        known = any(c.sizes[dim] == size and not condition.holds(c.sizes) for c in tried)
        if not known and affordable(program, sizes):
            found.setdefault((dim, size), Case(f"{dim}={size}", sizes, seed=len(found)))
    return list(found.values())[:_MOST_CASES]


def out_of_reach(
    program: Program, conditions: Sequence[Condition]
) -> Iterator[tuple[Condition, str, int]]:
    """The conditions that fail first at sizes that are not affordable to compare.

    With each comes a dimension, and the least of its larger sizes at which the condition is false.
    """
    traced = example_case(program).sizes
    for condition, dim, sizes in _boundaries(program, conditions):
        if sizes[dim] > traced[dim] and not affordable(program, sizes):
            yield condition, dim, sizes[dim]


def ends_within_reach(program: Program, condition: Condition) -> dict[str, int]:
    """An end for each dimension of a condition, so that sets which break it are affordable."""
    sizes = dict(example_case(program).sizes)
    while True:
        larger = fit_sizes(program, sizes | {dim: 2 * sizes[dim] for dim in condition.dims})
        if larger == sizes or not (affordable(program, larger) and condition.holds(larger)):
            return {dim: sizes[dim] for dim in condition.dims}
        sizes = larger


def _boundaries(
    program: Program, conditions: Sequence[Condition]
) -> Iterator[tuple[Condition, str, dict[str, int]]]:
    """Each condition, a dimension in it, and sizes just past it, of which that one is varied."""
    base = dict(example_case(program).sizes)
    for condition in conditions:
        for dim in condition.dims:
            for size in _edges(condition, base, dim, program.dims.get(dim, Dim())):
                if fit_sizes(program, {**base, dim: size}) == {**base, dim: size}:
                    yield condition, dim, {**base, dim: size}


def _edges(condition: Condition, base: Mapping[str, int], dim: str, own: Dim) -> Iterator[int]:
    """The sizes nearest to the traced one, below and above, at which a condition is false."""

    def holds(size: int) -> bool:
        return condition.holds({**base, dim: size})

    traced = base[dim]
    if not holds(traced):  # torch wrote it in a form that these sizes do not tell
        return
    below = [*range(traced - 1, max(own.min, traced - _NEAR) - 1, -1), own.min]
    numbers = (near for number in condition.numbers for near in (number, number + 1))
    far = sorted(size for size in (*_FAR, *numbers, own.max or 0) if size > traced)
    above = [*range(traced + 1, traced + _NEAR), *far]
    for sizes in (below, above):
        inside = [size for size in sizes if size in own and size != traced]
        if (beyond := next((size for size in inside if not holds(size)), None)) is not None:
            good = last(holds, traced, beyond)
            yield good + 1 if beyond > traced else good - 1
