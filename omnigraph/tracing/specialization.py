"""Which dimension a trace fixed, and which module made it do so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import (
    GraphRunner,
    longest_contraction,
    rounded_activations,
    rounding_depth,
)
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance, deviation, deviations
from omnigraph.errors import GraphError, TraceError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.program import Case, Dim, Program, dim_terms
from omnigraph.tracing.names import own_path, symbol

#: An error above this is no rounding: the outputs differ.
_PARTED = 1e-3


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

    def __enter__(self) -> None:
        self._hooks.append(self._entry.register_forward_pre_hook(self._begin))
        for name, module in self._entry.module.named_modules():
            label = own_path(name, self._program.root) or type(module).__name__
            self._hooks.append(module.register_forward_pre_hook(partial(self._enter, label)))
            self._hooks.append(module.register_forward_hook(self._leave))

    def __exit__(self, *_: object) -> None:
        if self._running:  # the module that failed, and those around it
            self._look()
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


def narrowed_error(program: Program, watch: SpecializationWatch) -> TraceError:
    """The error for the first dimension that was narrowed."""
    dim, found = next(iter(watch.found.items()))
    declared = program.dims.get(dim)
    sizes = f"any size in {declared}" if declared is not None else "a size that may vary"
    if found.low == found.high:
        return TraceError(
            f"The trace of program {program.name!r} fixed dimension {dim!r}, which was declared "
            f"dynamic, in module {found.module!r}",
            expected=sizes,
            found=f"the constant {found.low}",
            hint="in that module, do not compare or convert the size; or declare it fixed with "
            f"--dynamic {_argument(dim, found.low, found.low)}",
        )
    low = declared.min if declared is not None else found.low
    return TraceError(
        f"The trace of program {program.name!r} holds for fewer sizes of dimension {dim!r} than "
        f"were declared: module {found.module!r} does something else, or fails, beyond "
        f"{found.high}",
        expected=sizes,
        found=f"at most {found.high}",
        hint=f"declare what the module takes, with "
        f"--dynamic {_argument(dim, low, found.high)}; or take the branch on the size out of it",
    )


def _argument(dim: str, low: int, high: int) -> str:
    text = f"{dim}={low}:{high}"
    return f"'{text}'" if " " in dim else text


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


def fault_of(
    runner: GraphRunner, sample: Reference, scales: Mapping[str, float] | None = None
) -> str | None:
    """What is wrong with the numbers of a Graph on one set of inputs, or None."""
    expected = sample.outputs
    try:
        found = runner.run(sample.feeds)
    except GraphError as error:
        return str(error.found or error.message)
    tolerance = _exact(runner.graph)
    for name, part in deviations(found, expected, scales).items():
        if found[name].shape != expected[name].shape:
            return f"{name} of shape {found[name].shape} where the model has {expected[name].shape}"
        if not part.within(tolerance):
            return (
                f"{name} with an error of {part.rms:.1e} rms, {part.peak:.1e} peak "
                f"(tolerance {tolerance.rms:.1e}, {tolerance.peak:.1e})"
            )
    return None


def _exact(graph: Graph) -> Tolerance:
    depth, contraction = rounding_depth(graph), longest_contraction(graph)
    exact = Tolerance.for_precision("fp32", depth=depth, contraction=contraction)
    return exact.with_rounded_activations(rounded_activations(graph))


def parted_error(
    program: Program,
    runner: GraphRunner,
    sample: Reference,
    fault: str,
    *,
    traced: Case,
    reference: Callable[[Case], Reference],
    recorded: Sequence[tuple[str, Sequence[np.ndarray]]],
) -> TraceError:
    """The error for a Graph whose numbers are not the module's: for which dimensions, and where.

    Args:
        fault: what ``fault_of`` found on ``sample``.
        traced: the sizes that the program was traced at.
        reference: what the torch module makes of other cases; a TraceError where it does not run.
        recorded: as ``parting_module`` takes it, for the sample.
    """

    def parts(other: Case) -> bool:
        try:
            return fault_of(runner, reference(other)) is not None
        except TraceError:
            return False

    case = sample.case
    module = parting_module(runner.graph, sample.feeds, recorded)
    where = f" in module {module!r}" if module else ""
    expected = f"the model's outputs at {dict(case.sizes)}"
    if parts(replace(traced, padding=case.padding, seed=case.seed)):
        return TraceError(
            f"The Graph of program {program.name!r} is not what the model computes, whatever the "
            f"sizes: the numbers part{where}",
            expected=expected,
            found=fault,
            hint="torch converted an operation wrongly, or the module does not give the same "
            "numbers twice; write that operation in another way",
        )
    guilty = guilty_dimensions(traced, case, parts) or list(case.sizes)
    return TraceError(
        f"The trace of program {program.name!r} is not what the model computes at other sizes than "
        f"it was traced at: dimension {' and '.join(map(repr, guilty))} was specialized{where}",
        expected=expected,
        found=fault,
        hint="compute with tensor.shape there, not with numbers taken from an example, nor with a "
        f"branch on the size; or declare the sizes it holds for: --dynamic {guilty[0]}=MIN:MAX",
    )


def parting_module(
    graph: Graph,
    feeds: Mapping[str, np.ndarray],
    recorded: Iterable[tuple[str, Sequence[np.ndarray]]],
) -> str | None:
    """The first module to finish with an output that none of its nodes in the Graph computes.

    A module without nodes gives what it was given: then any value of the Graph may be its output.

    Args:
        recorded: path and outputs of each module of the torch model, in the order they finished.
    """
    probe = graph.clone()
    results = [v for v in probe.graph.outputs if v is not None]
    found = [v for node in probe.graph for v in node.outputs if v.dtype is not None]
    probe.graph.outputs.extend(v for v in found if v not in results)
    try:
        arrays = GraphRunner(probe).run(feeds)
    except GraphError:  # it does not run at this size: that error names its node
        return None
    for module, outputs in recorded:
        own = [arrays[v.name or ""] for v in found if _leaves(v, module, v in results)]
        candidates = own or [*arrays.values(), *feeds.values()]
        if not all(any(_agree(array, out) for array in candidates) for out in outputs):
            return module
    return None


def _leaves(value: ir.Value, module: str, result: bool) -> bool:
    """Whether a module computes this value for use outside of it."""
    return _is_in(value.producer(), module) and (
        result or any(not _is_in(user, module) for user, _ in value.uses())
    )


def _is_in(node: ir.Node | None, module: str) -> bool:
    path = "" if node is None else node.metadata_props.get(MODULE_KEY, "")
    return path == module or path.startswith(f"{module}.")


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    return deviation(found, expected).rms < _PARTED
