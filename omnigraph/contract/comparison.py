"""Compares the outputs of an artifact with those of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Deviation, Tolerance, deviations, output_scales
from omnigraph.errors import ContractError

#: A function that runs a program: feeds to outputs, both by name.
Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


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
    tolerances: Mapping[str, Tolerance],
    run_program: Callable[[Artifact, str], AbstractContextManager[Run]],
) -> list[NumberCheck]:
    """Compare every output of every program with torch, over every input set.

    Args:
        directory: a sealed artifact.
        run_program: opens a program of the artifact, and gives the function that runs it: in the
            target's runtime, or, where that is not here, the lowered Graph in onnxruntime.

    Raises:
        ContractError: an output is beyond the tolerance; the message names program, output, input
            set, error and tolerance.
    """
    artifact = Artifact(directory, check_hashes=False)
    checks: list[NumberCheck] = []
    for program, sets in references.items():
        # One program at a time, so that no two are in memory.
        with run_program(artifact, program) as run:
            checks += _check_program(program, run, sets, tolerances[program])
    return checks


def _check_program(
    program: str, run: Run, sets: Sequence[Reference], tolerance: Tolerance
) -> list[NumberCheck]:
    worst: dict[str, NumberCheck] = {}
    scales = output_scales([reference.outputs for reference in sets])
    for reference in sets:
        found = deviations(run(reference.feeds), reference.outputs, scales)
        for output, deviation in found.items():
            if not deviation.within(tolerance):
                raise ContractError(
                    f"Output {output!r} of program {program!r} is too far from the torch model on "
                    f"input set {reference.case.name!r} {dict(reference.case.sizes)}; no artifact "
                    "was written",
                    expected=f"an error within {tolerance.rms:.2e} rms and {tolerance.peak:.2e} "
                    "peak, relative to the output's rms",
                    found=f"{deviation.rms:.2e} rms and {deviation.peak:.2e} peak",
                    hint="`omnigraph bisect MODEL --target T` names the pass and the node after "
                    "which the numbers differ; a wider --precision may keep the contract",
                )
            before = worst.get(output)
            if before is None or deviation.rms > before.deviation.rms:
                worst[output] = NumberCheck(
                    program, output, reference.case.name, deviation, tolerance
                )
    return list(worst.values())
