"""A Graph whose numbers are not its module's: for which sizes, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from omnigraph.contract.graph_check import (
    GraphRunner,
    longest_contraction,
    rounded_activations,
    rounding_depth,
)
from omnigraph.contract.probabilities import least_scales
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance, deviation, deviations, output_scales
from omnigraph.errors import GraphError, TraceError
from omnigraph.graph import MODULE_KEY, Graph
from omnigraph.program import Case, Dim, Program
from omnigraph.tracing.conditions import Condition, conditions_of
from omnigraph.tracing.sizes import last
from omnigraph.tracing.specialization import argument, guilty_dimensions

#: An error above this is no rounding: the outputs differ. Where no module's outputs differ so much,
#: they differ by more than this many tolerances; an output that is small by itself may do so too.
_PARTED, _TOLERANCES = 1e-3, 4
#: How many sizes below the traced one are tried, one by one.
_NEAR = 32


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
    scales = scales or scales_of(runner.graph, [sample])
    for name, part in deviations(found, expected, scales).items():
        if found[name].shape != expected[name].shape:
            return f"{name} of shape {found[name].shape} where the model has {expected[name].shape}"
        if not part.within(tolerance):
            return (
                f"{name} with an error of {part.rms:.1e} rms, {part.peak:.1e} peak "
                f"(tolerance {tolerance.rms:.1e}, {tolerance.peak:.1e})"
            )
    return None


def scales_of(graph: Graph, references: Sequence[Reference]) -> dict[str, float]:
    """What divides the errors of each output of a Graph as traced."""
    least = least_scales(graph, _exact(graph))
    return output_scales([reference.outputs for reference in references], least)


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
    failed = [c for c in conditions_of(runner.graph) if not c.holds(case.sizes)]
    guilty = guilty_dimensions(traced, case, parts) or _together(failed, traced, case, parts)
    broken = [condition for condition in failed if set(condition.dims) & set(guilty)]
    broken.sort(key=lambda condition: (not condition.place, len(condition.dims)))
    return TraceError(
        f"The trace of program {program.name!r} is not what the model computes at other sizes than "
        f"it was traced at: dimension {' and '.join(map(repr, guilty))} was specialized{where}"
        + (f", where {broken[0]} no longer holds" if broken else ""),
        expected=expected,
        found=fault,
        hint="compute with tensor.shape there, not with numbers taken from an example, nor with a "
        f"branch on the size; or {_sizes_that_hold(program, traced, case, guilty, parts)}",
    )


def _together(
    failed: Sequence[Condition], traced: Case, case: Case, parts: Callable[[Case], bool]
) -> list[str]:
    """The dimensions of one condition that make ``parts`` true together; else all of them."""
    for condition in failed:
        sizes = {**traced.sizes, **{dim: case.sizes[dim] for dim in condition.dims}}
        if condition.dims and parts(Case("together", sizes, case.padding, case.seed)):
            return list(condition.dims)
    return list(case.sizes)


def _sizes_that_hold(
    program: Program,
    traced: Case,
    case: Case,
    guilty: Sequence[str],
    parts: Callable[[Case], bool],
) -> str:
    """How to declare the sizes at which the Graph is what the module computes."""
    if len(guilty) > 1:
        return _fixed(program, traced, guilty)
    (dim,) = guilty
    own, start, bad = program.dims.get(dim, Dim()), traced.sizes[dim], case.sizes[dim]

    def holds(size: int) -> bool:
        sizes = {**traced.sizes, dim: size}
        return size in own and not parts(Case(dim, sizes, case.padding, case.seed))

    down = max(own.min, start - (_NEAR if bad < start else 3))
    below = (*range(start - 1, down - 1, -1), own.min)
    above = (*range(start + 1, start + 4), max(bad, start))
    low, high = (next((n for n in near if not holds(n)), None) for near in (below, above))
    least = own.min if low is None else last(holds, start, low)
    most = own.max if high is None else last(holds, start, high)
    if least == most:  # it holds for no two sizes that follow each other
        return _fixed(program, traced, guilty)
    shortest = {name: program.dims[name].min for name in traced.sizes if name in program.dims}
    if parts(Case(dim, {**traced.sizes, **shortest, dim: least}, case.padding, case.seed)):
        return _fixed(program, traced, program.dim_names())  # the others matter as well
    return f"declare the sizes it holds for: {argument(dim, least, most)}"


def _fixed(program: Program, traced: Case, dims: Sequence[str]) -> str:
    """How to fix dimensions at the sizes of the example, or of the trace."""
    sizes = {dim: program.example.get(dim, traced.sizes[dim]) for dim in dims}
    return "fix these sizes: --dynamic " + ",".join(f"{d}={n}:{n}" for d, n in sizes.items())


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
    of_modules = list(recorded)
    for most in (_PARTED, _TOLERANCES * _exact(graph).rms):
        if (module := _first_parted(found, arrays, feeds, of_modules, results, most)) is not None:
            return module
    return None


def _first_parted(
    found: Sequence[ir.Value],
    arrays: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
    recorded: Iterable[tuple[str, Sequence[np.ndarray]]],
    results: Sequence[ir.Value],
    most: float,
) -> str | None:
    """The first module of which an output is further than ``most`` from each of its nodes'."""
    for module, outputs in recorded:
        inside = [v for v in found if _is_in(v.producer(), module)]
        own = [arrays[v.name or ""] for v in inside if _leaves(v, module, v in results)]
        # The Graph may use only some of a module's outputs: the others stay inside.
        kept = [arrays[v.name or ""] for v in inside]
        for out in outputs:
            candidates = [array for array in own if array.shape == out.shape] or kept
            candidates = candidates or [*arrays.values(), *feeds.values()]
            if not any(deviation(array, out).rms < most for array in candidates):
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
