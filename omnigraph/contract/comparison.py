"""Compares the outputs of an artifact with those of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.failed_run import FAILURES, failure
from omnigraph.contract.flips import Flips, count_flips
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import (
    Deviation,
    Noise,
    Tolerance,
    deviations,
    noises,
    output_scales,
    with_ties,
)
from omnigraph.errors import ContractError

Outputs = Mapping[str, np.ndarray]
#: A function that runs a program: feeds to outputs, both by name.
Run = Callable[[Mapping[str, np.ndarray]], Outputs]
#: Opens a program of an artifact, and gives the function that runs it.
Open = Callable[[Artifact, str], AbstractContextManager[Run]]


@dataclass(frozen=True)
class Bounds:
    """How far the outputs of one program's artifact may be.

    Args:
        exact: without the rounding of activations, from ``outputs``.
        outputs: of the Graph that was emitted, without the rounding of activations, for each input
            set; None where nothing rounds, so that torch's own outputs are as near.
        noise: by output, of the rounding that the target's runtime does, from ``outputs``.
        total: as it is shipped, from torch.
        least: the least scale of each output of probabilities.
        flips: of each output of integers or booleans that is compared by the number of its wrong
            elements, not by ``noise`` and ``total``: floats that are rounded choose it.
        tables: the size in bytes and the sha256 of each table of weights, by name, that the vendor
            file must hold.
    """

    exact: Tolerance
    total: Tolerance
    outputs: Sequence[Outputs] | None = None
    noise: Mapping[str, Noise] | None = None
    tables: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    flips: Mapping[str, Flips] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The tolerance of the artifact as JSON-ready fields."""
        scales = {"least_scales": dict(self.least)} if self.least else {}
        wrong = {name: allowed.total for name, allowed in self.flips.items()}
        return {
            **self.total.to_dict(),
            **scales,
            **({"most_wrong": wrong} if wrong else {}),
        }


@dataclass(frozen=True)
class Openers:
    """How the contract looks into an artifact.

    Args:
        program: opens a program in the target's runtime, or, where that is not here, its lowered
            Graph in onnxruntime.
        unrounded: opens a program so that it rounds no activation.
        hashes: the sha256 of each constant of a program, of those of the given sizes in bytes.
    """

    program: Open
    unrounded: Open
    hashes: Callable[[Artifact, str, Collection[int]], set[str]]


_NOWHERE: Mapping[str, Mapping[str, str]] = {}


@dataclass(frozen=True)
class NumberCheck:
    """The worst deviation of one output over all input sets, and the input set that gave it."""

    program: str
    output: str
    case: str
    deviation: Deviation
    tolerance: Tolerance

    def to_dict(self) -> dict[str, Any]:
        """The check as JSON-ready fields."""
        return {
            "program": self.program,
            "output": self.output,
            "case": self.case,
            "rms": self.deviation.rms,
            "peak": self.deviation.peak,
            "tolerance": self.tolerance.to_dict(),
        }


def check_artifact(
    directory: Path,
    references: Mapping[str, Sequence[Reference]],
    bounds: Mapping[str, Bounds],
    openers: Openers,
    places: Mapping[str, Mapping[str, str]] = _NOWHERE,
) -> list[NumberCheck]:
    """Compare every output of every program with the Graph that was emitted, and with torch.

    Args:
        directory: a sealed artifact.
        places: for each program, by name of a node or of its outputs, the node for a person.

    Raises:
        RunError: a program does not run on an input set; the message names sizes and module.
        ContractError: an output is beyond its bounds; the message names program, output, input
            set, error and tolerance.
    """
    artifact = Artifact(directory, check_hashes=False)
    checks: list[NumberCheck] = []
    for program, sets in references.items():
        bound = bounds[program]
        _check_tables(program, artifact, bound, openers)
        if bound.outputs is not None:
            with openers.unrounded(artifact, program) as run:
                run = _explained(program, run, sets, places.get(program, {}))
                _check_unrounded(program, run, sets, bound)
        # One program at a time, so that no two are in memory.
        with openers.program(artifact, program) as run:
            run = _explained(program, run, sets, places.get(program, {}))
            checks += _check_program(program, run, sets, bound)
    return checks


def _check_tables(program: str, artifact: Artifact, bound: Bounds, openers: Openers) -> None:
    """Look for each table of weights in the vendor file: inputs read few of their rows."""
    sizes = {size for size, _ in bound.tables.values()}
    found = openers.hashes(artifact, program, sizes) if sizes else set()
    for name, (_, sha256) in bound.tables.items():
        if sha256 not in found:
            raise ContractError(
                f"Table {name!r} of program {program!r} is not in the artifact with the values "
                "that it has in the Graph; no artifact was written",
                expected="the values of the Graph that was compiled",
                hint="the compiler changes a weight",
            )


def _check_unrounded(program: str, run: Run, sets: Sequence[Reference], bound: Bounds) -> None:
    """Compare the files of an artifact with the Graph that they were made of."""
    assert bound.outputs is not None
    scales = output_scales(bound.outputs, bound.least)
    for reference, expected in zip(sets, bound.outputs, strict=True):
        for output, found in deviations(run(reference.feeds), expected, scales).items():
            allowed = with_ties(bound.exact, expected[output], scales[output])
            if not found.within(allowed):
                raise ContractError(
                    f"Output {output!r} of program {program!r} is not that of the Graph that was "
                    f"compiled, on input set {reference.case.name!r} {dict(reference.case.sizes)}, "
                    "though neither rounds activations; no artifact was written",
                    expected=_within(bound.exact),
                    found=f"{found.rms:.2e} rms and {found.peak:.2e} peak",
                    hint="the compiler or its runtime is at fault: `omnigraph bisect MODEL "
                    "--target T` names the node",
                )


def _within(tolerance: Tolerance) -> str:
    return (
        f"an error within {tolerance.rms:.2e} rms and {tolerance.peak:.2e} peak, relative to the "
        "output's rms"
    )


def _explained(program: str, run: Run, sets: Sequence[Reference], places: Mapping[str, str]) -> Run:
    """A function that runs the program, and says of what fails which sizes and which module."""

    def explained(feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        try:
            return run(feeds)
        except FAILURES as error:
            failed = next(reference for reference in sets if reference.feeds is feeds)
            raise failure(program, run, failed, sets, places, error) from error

    return explained


def _check_program(
    program: str, run: Run, sets: Sequence[Reference], bound: Bounds
) -> list[NumberCheck]:
    worst: dict[str, NumberCheck] = {}
    scales = output_scales([reference.outputs for reference in sets], bound.least)
    found_sets: list[Outputs] = []
    for reference in sets:
        outputs = run(reference.feeds)
        found_sets.append(outputs)
        for output, deviation in deviations(outputs, reference.outputs, scales).items():
            if output in bound.flips:
                continue
            if not deviation.within(bound.total):
                raise _too_far(program, output, reference, deviation, bound.total)
            before = worst.get(output)
            if before is None or deviation.rms > before.deviation.rms:
                worst[output] = NumberCheck(
                    program, output, reference.case.name, deviation, bound.total
                )
    if bound.outputs is not None:
        _check_noise(program, found_sets, bound)
    return [*worst.values(), *_check_flips(program, found_sets, sets, bound)]


def _check_flips(
    program: str, found: Sequence[Outputs], sets: Sequence[Reference], bound: Bounds
) -> Iterator[NumberCheck]:
    """Count where what floats choose differs from the Graph and from torch.

    The golden pair, the last of the sets, is also counted alone, since `verify` has no other.
    """
    torch = [reference.outputs for reference in sets]
    for output, allowed in bound.flips.items():
        assert bound.outputs is not None
        size, last = (sum(o[output].size for o in some) for some in (torch, torch[-1:]))
        counted = (
            ("the Graph that was compiled", bound.outputs, found, allowed.rounding, size),
            ("torch", torch, found, allowed.total, size),
            ("torch on the golden pair", torch[-1:], found[-1:], allowed.of_golden(last), last),
        )
        for what, expected, given, most, count in counted:
            wrong = count_flips(given, expected, output)
            if wrong > most:
                raise ContractError(
                    f"Output {output!r} of program {program!r} differs from {what} in more "
                    "elements than rounding explains; no artifact was written",
                    expected=f"{most:,} of {count:,} elements at most, over all input sets",
                    found=f"{wrong:,}",
                    hint="`omnigraph bisect MODEL --target T` names the node after which the "
                    "numbers differ; a wider --precision flips fewer of them",
                )
        each = [count_flips([f], [e], output) for f, e in zip(found, torch, strict=True)]
        part, most_part = sum(each) / max(1, size), allowed.total / max(1, size)
        yield NumberCheck(
            program,
            output,
            sets[each.index(max(each))].case.name,
            Deviation(part, part),
            Tolerance(most_part, most_part),
        )


def _too_far(
    program: str, output: str, reference: Reference, found: Deviation, tolerance: Tolerance
) -> ContractError:
    return ContractError(
        f"Output {output!r} of program {program!r} is too far from the torch model on input set "
        f"{reference.case.name!r} {dict(reference.case.sizes)}; no artifact was written",
        expected=_within(tolerance),
        found=f"{found.rms:.2e} rms and {found.peak:.2e} peak",
        hint="`omnigraph bisect MODEL --target T` names the pass and the node after which the "
        "numbers differ; a wider --precision may keep the contract, or --dynamic without these "
        "sizes",
    )


def _check_noise(program: str, found: Sequence[Outputs], bound: Bounds) -> None:
    """Compare what the runtime rounds with what its rounding explains."""
    assert bound.outputs is not None and bound.noise is not None
    for output, noise in noises(found, bound.outputs, bound.least).items():
        if output in bound.flips:
            continue
        if not bound.noise[output].explains(noise, bound.exact):
            limit = bound.noise[output].limit(bound.exact)
            raise ContractError(
                f"Output {output!r} of program {program!r} is further from the Graph that was "
                "compiled than the rounding of its activations explains; no artifact was written",
                expected=f"{limit.pooled:.2e} rms over all input sets, {limit.single:.2e} in one, "
                f"and {limit.peak:.2e} peak",
                found=f"{noise.pooled:.2e}, {noise.single:.2e} and {noise.peak:.2e}",
                hint="`omnigraph bisect MODEL --target T` names the node after which the numbers "
                "differ",
            )
