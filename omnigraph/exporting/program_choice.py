"""Chooses the programs of a model to compile, and the ranges of their dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from omnigraph.errors import TraceError, UsageError, suggest
from omnigraph.frontends.resolve import ModelSource
from omnigraph.program import Dim, Program


def choose_programs(
    source: ModelSource, names: Sequence[str] | None, dynamic: Mapping[str, Dim]
) -> tuple[Program, ...]:
    """The programs of these names (None is all), with these ranges of dimensions.

    Ranges that are not given are those that the module takes. A program that is named is not
    expendable.

    Raises:
        UsageError: there is no such program or dimension.
        TraceError: the module takes no two neighbouring sizes of a dimension.
    """
    known = [program.name for program in source.programs]
    for name in names or ():
        if name not in known:
            raise UsageError(
                f"{source.name} has no program {name!r}",
                expected=" or ".join(known),
                found=source.not_made.get(name),
                hint=suggest(name, known, "leave --programs out to compile all of them"),
            )
    from omnigraph.tracing.limits import with_own_limits  # it imports torch

    chosen = [p for p in source.programs if names is None or p.name in names]
    dims = {dim for program in chosen for dim in (*program.dims, *program.dim_names())}
    for dim in dynamic:
        if dim not in dims:
            raise UsageError(
                f"{source.name} has no dimension {dim!r}",
                expected=", ".join(sorted(dims)),
                hint=suggest(
                    dim, dims, "`omnigraph inspect MODEL` shows the dimensions of each input"
                ),
            )
    if names is not None:
        chosen = [replace(program, expendable=False) for program in chosen]
    limited = []
    for program in chosen:
        declared = program.with_dims(dynamic)
        try:
            limited.append(with_own_limits(declared))
        except TraceError:
            if not program.expendable:
                raise
            limited.append(declared)  # its trace says why it is left out
    return tuple(limited)
