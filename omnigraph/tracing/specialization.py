"""Which dimension a trace fixed, and which module made it do so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from omnigraph.errors import TraceError
from omnigraph.graph import Graph
from omnigraph.program import Case, Dim, Program, dim_terms
from omnigraph.tracing.conditions import Condition, read_conditions
from omnigraph.tracing.names import own_path, symbol


@dataclass(frozen=True)
class Narrowing:
    """The sizes to which a module narrowed a dimension, and the label of that module."""

    module: str
    low: int
    high: int


class SpecializationWatch:
    """Notes after which module a dimension became a number, or lost sizes that were declared.

    torch.export records each branch on a size as a bound of its symbol. Upper bounds are noted,
    since no example is as large as a dimension may be. Lower bounds are ignored: torch sets some
    itself (no size is 0 or 1), and the smallest sizes are always compared.
    """

    def __init__(self, entry: Any, program: Program) -> None:
        self._entry, self._program = entry, program
        self._symbols: list[tuple[str, Any]] = []
        self._hooks: list[Any] = []
        self._running: list[str] = []  # the modules that are in their forward, outermost first
        self._seen = (-1, -1)  # torch's guards and version at the last look
        self.found: dict[str, Narrowing] = {}
        self.conditions: tuple[Condition, ...] = ()

    def __enter__(self) -> None:
        self._hooks.append(self._entry.register_forward_pre_hook(self._begin))
        for name, module in self._entry.module.named_modules():
            label = own_path(name, self._program.root) or type(module).__name__
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, label)))
            self._hooks.append(module.register_forward_hook(self._leave))

    def __exit__(self, *_: object) -> None:
        if self._running:  # the module that failed, and those around it
            self._look()
        self.conditions = tuple(read_conditions(self._symbols, self._program))
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: object, inputs: tuple[Any, ...]) -> None:
        found = [
            (dim, tensor.shape[axis])
            for spec, tensor in zip(self._program.inputs, inputs, strict=True)
            for axis, dim in enumerate(spec.shape)
            if isinstance(dim, str) and hasattr(tensor.shape[axis], "node")
        ]
        # Sums first: a bound on a sum bounds its terms, and not the other way round.
        self._symbols = sorted(found, key=lambda entry: -len(dim_terms(entry[0])))

    def _enter(self, label: str, *_: object) -> None:
        self._look()
        self._running.append(label)

    def _leave(self, *_: object) -> None:
        self._look()
        self._running.pop()

    def _look(self) -> None:
        """Note what was narrowed since the last look, and the module that is running."""
        if not self._symbols:
            return
        shapes = self._symbols[0][1].node.shape_env
        if self._seen == (seen := (len(shapes.guards), shapes._version_counter)):
            return
        self._seen = seen
        for dim, size in self._symbols:
            if dim not in self.found and (bounds := self._narrowed(dim, size)):
                self.found[dim] = Narrowing(self._running[-1], *bounds)

    def _narrowed(self, dim: str, size: Any) -> tuple[int, int] | None:
        """The bounds of a size where they are tighter than the declared ones, or None."""
        shapes, symbol = size.node.shape_env, size.node._expr
        bounds = shapes.bound_sympy(size.node.expr)
        if (own := shapes.var_to_range.get(symbol)) is not None:  # of a sum, not of its terms
            bounds = bounds & own
        if not getattr(bounds.upper, "is_Integer", False):
            return None
        low, high = int(bounds.lower), int(bounds.upper)
        longest = longest_declared(self._program, dim)
        declared = self._program.dims.get(dim)
        fixed = low == high and (declared is None or declared.min < low)
        return (low, high) if fixed or longest is None or high < longest else None


def longest_declared(program: Program, dim: str) -> int | None:
    """The largest size that a program declares for a dimension or a sum, or None for no bound.

    A term of a bounded sum is bounded by what the other terms leave, each of which torch takes to
    be 2 at least.
    """
    terms = dim_terms(dim)
    ends = [own.max] if (own := program.dims.get(dim)) is not None else []
    if len(terms) > 1 and None not in (longest := [_longest_term(program, t) for t in terms]):
        ends.append(sum(size for size in longest if size is not None))
    for name, allowed in program.dims.items():
        others = list(dim_terms(name))
        if allowed.max is not None and name != dim and dim in others:
            others.remove(dim)
            ends.append(allowed.max - sum(_least_term(program, t) for t in others))
    return min((end for end in ends if end is not None), default=None)


def _longest_term(program: Program, term: str) -> int | None:
    return int(term) if term.isdigit() else program.dims.get(term, Dim()).max


def _least_term(program: Program, term: str) -> int:
    return int(term) if term.isdigit() else max(2, program.dims.get(term, Dim()).min)


class NarrowedError(TraceError):
    """A trace that holds for fewer sizes than were declared.

    ``limit`` is the dimension and the largest size, where it is an upper bound.
    """

    limit: tuple[str, int] | None = None


def narrowed_error(program: Program, watch: SpecializationWatch) -> NarrowedError:
    """The error for the first dimension that was narrowed."""
    dim, found = next(iter(watch.found.items()))
    declared = program.dims.get(dim)
    sizes = f"any size in {declared}" if declared is not None else "a size that may vary"
    if found.low == found.high:
        fixed = argument(dim, *[program.example.get(dim, found.low)] * 2)
        how = "in that module, do not compare or convert the size; or declare it fixed with"
        return NarrowedError(
            f"The trace of program {program.name!r} fixed dimension {dim!r}, which was declared "
            f"dynamic, in module {found.module!r}",
            expected=sizes,
            found=f"the constant {found.low}",
            hint="; or ".join(filter(None, (program.axes_hint, f"{how} {fixed}"))),
        )
    low = declared.min if declared is not None else found.low
    error = NarrowedError(
        f"The trace of program {program.name!r} holds for fewer sizes of dimension {dim!r} than "
        f"were declared: module {found.module!r} does something else, or fails, beyond "
        f"{found.high}{_comparison(watch, dim, found.high)}",
        expected=sizes,
        found=f"at most {found.high}",
        hint=f"declare the sizes it holds for, with {argument(dim, low, found.high)}; or take the "
        "branch on the size out of the module",
    )
    error.limit = (dim, found.high)
    return error


def _comparison(watch: SpecializationWatch, dim: str, high: int) -> str:
    """The comparison of one dimension that is true up to a size, with its line; "" if unknown."""
    placed = (c for c in watch.conditions if c.dims == (dim,) and c.place)
    ends = (c for c in placed if c.holds({dim: high}) and not c.holds({dim: high + 1}))
    return next((f", where {condition} no longer holds" for condition in ends), "")


def argument(dim: str, low: int, high: int | None) -> str:
    """The option of the command line that declares a range."""
    text = f"{dim}={Dim(low, high)}"
    return "--dynamic " + (f"'{text}'" if " " in dim else text)


def check_open(graph: Graph, program: Program) -> None:
    """Refuse a traced Graph in which an axis that was declared dynamic is a number.

    Raises:
        TraceError: naming the input and the dimension.
    """
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and symbol(value, axis) is None:
                bounds = [program.dims.get(term, Dim()) for term in dim_terms(dim)]
                if all(b.min == b.max for b in bounds):
                    continue  # declared with one size: nothing to keep open
                raise TraceError(
                    f"The trace of program {program.name!r} fixed dimension {dim!r} of input "
                    f"{spec.name!r}, which was declared dynamic",
                    expected="a symbolic size",
                    found=str(value.shape),
                    hint="declare it fixed with --dynamic DIM=N:N, or trace with another example",
                )


def guilty_dimensions(traced: Case, case: Case, parts: Callable[[Case], bool]) -> list[str]:
    """The dimensions that alone, at the size they have in ``case``, make ``parts`` true."""
    guilty = []
    for dim, size in case.sizes.items():
        alone = Case(dim, {**traced.sizes, dim: size}, case.padding, case.seed)
        if parts(alone):
            guilty.append(dim)
    return guilty
