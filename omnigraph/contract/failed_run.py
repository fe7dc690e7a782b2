"""A program that does not run while it is compared: at which sizes, and in which module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from omnigraph.contract.reference import Reference
from omnigraph.errors import GraphError, RunError

#: What a runtime raises when it fails on inputs.
FAILURES = (RunError, GraphError)
#: How runtimes name a node: ``Name:'add'``, ``with name 'add'``, ``Node (add)``.
_NAMED = re.compile(r"[Nn]ame:? ?'([^']+)'|[Nn]ode \(([^)]+)\)")


def failure(
    program: str,
    run: Callable[[Mapping[str, np.ndarray]], object],
    failed: Reference,
    sets: Sequence[Reference],
    places: Mapping[str, str],
    error: RunError | GraphError,
) -> RunError:
    """The error of an export whose program fails in its runtime on inputs that torch takes.

    The other input sets are run too: a dimension whose sizes tell those that fail from those that
    run is named.

    Args:
        run: runs the program.
        failed: the input set on which it failed first.
        sets: all input sets of the program.
        places: by name of a node or of its outputs, the node for a person, with its module.
        error: of the runtime, on that input set.
    """
    runs = {id(other): other is not failed and _runs(run, other) for other in sets}
    sizes = {outcome: [s.case.sizes for s in sets if runs[id(s)] == outcome] for outcome in (0, 1)}
    dims = [
        dim
        for dim in failed.case.sizes
        if sizes[1] and not {s[dim] for s in sizes[0]} & {s[dim] for s in sizes[1]}
    ]
    where = ", ".join(f"{dim}={failed.case.sizes[dim]}" for dim in dims or failed.case.sizes)
    node = _node_in(f"{error} {error.__cause__}", places)
    tried = "; ".join(
        f"{dim!r} fails at {_listed(sizes[0], dim)}, and runs at {_listed(sizes[1], dim)}"
        for dim in dims
    )
    if not tried:
        tried = f"{len(sizes[0])} of {len(sets)} input sets fail"
    narrower = (
        f"--dynamic {dims[0]}=MIN:MAX of sizes that run" if dims else "other --dynamic ranges"
    )
    return RunError(
        f"Program {program!r} does not run at {where} (input set {failed.case.name!r}) in the "
        f"target's runtime, and does in torch; no artifact was written",
        expected="outputs at every size that is declared",
        found=f"{error.found or error.message}{f', at {node}' if node else ''}; {tried}",
        hint=f"change the module named here, or export with {narrower}",
    )


def _runs(run: Callable[[Mapping[str, np.ndarray]], object], reference: Reference) -> bool:
    try:
        run(reference.feeds)
    except FAILURES:
        return False
    return True


def _node_in(text: str, places: Mapping[str, str]) -> str:
    """The node that a runtime's message names; "" where it names none that is known."""
    names = (a or b for a, b in _NAMED.findall(text))
    return next((places[name] for name in names if name in places), "")


def _listed(sizes: Sequence[Mapping[str, int]], dim: str) -> str:
    return ", ".join(map(str, sorted({each[dim] for each in sizes})))
