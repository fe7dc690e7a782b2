"""Compares the outputs of an artifact with those of torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.failed_run import FAILURES, failure
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
        tables: the size in bytes and the sha256 of each table of weights, by name, that the vendor
            file must hold.
    """

    exact: Tolerance
    total: Tolerance
    outputs: Sequence[Outputs] | None = None
    noise: Mapping[str, Noise] | None = None
    tables: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The tolerance of the artifact as JSON-ready fields."""
        scales = {"least_scales": dict(self.least)} if self.least else {}
        return {**self.total.to_dict(), **scales}


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
            if not deviation.within(bound.total):
                raise _too_far(program, output, reference, deviation, bound.total)
            before = worst.get(output)
            if before is None or deviation.rms > before.deviation.rms:
                worst[output] = NumberCheck(
                    program, output, reference.case.name, deviation, bound.total
                )
    if bound.outputs is not None:
        _check_noise(program, found_sets, bound)
    return list(worst.values())


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
