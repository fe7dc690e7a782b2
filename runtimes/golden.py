"""The golden pair: the inputs of an artifact, run on this machine, and what torch gave for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.artifact import Artifact
from omnigraph.contract.tolerance import (
    Deviation,
    Tolerance,
    deviations,
    half_of,
    output_scales,
    wrong_elements,
)
from omnigraph.errors import ContractError
from omnigraph.runtimes.variants import MISSED


@dataclass(frozen=True)
class GoldenCheck:
    """The deviation of one output of the golden pair on this machine."""

    program: str
    output: str
    deviation: Deviation
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """Whether the deviation is within the tolerance."""
        return self.deviation.within(self.tolerance)

    def __str__(self) -> str:
        return (
            f"program {self.program!r}, output {self.output!r}: error {self.deviation.rms:.2e} "
            f"rms, {self.deviation.peak:.2e} peak; tolerance {self.tolerance.rms:.2e} rms, "
            f"{self.tolerance.peak:.2e} peak"
        )


def with_golden(artifact: Artifact, programs: Sequence[str], allow_missing: bool) -> list[str]:
    """Those programs that have a golden pair.

    Raises:
        ContractError: one has none, and ``allow_missing`` is off.
    """
    bare = [name for name in programs if artifact.programs[name].golden is None]
    if bare and not allow_missing:
        raise ContractError(
            f"{artifact.path} cannot be verified",
            expected="a golden pair for each program",
            found=f"none for {', '.join(bare)}",
            hint="export it again: `omnigraph export` always writes them; `omnigraph verify "
            "--allow-missing` passes over such programs",
        )
    return [name for name in programs if name not in bare]


def check_golden(
    artifact: Artifact,
    program: str,
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
) -> list[GoldenCheck]:
    """Run a program on its golden inputs, and measure the deviation of each output.

    Args:
        run: takes inputs and gives outputs, both by name.

    Raises:
        ArtifactError: the golden pair is not of the program's inputs and outputs.
    """
    feeds, golden = artifact.golden_pair(program, without=(MISSED,))
    bounds = artifact.programs[program].tolerance
    tolerance = Tolerance(bounds["rms"], bounds["peak"])
    scales = output_scales([golden], bounds.get("least_scales", {}))
    given = run(feeds)
    checks = []
    for name, far in deviations(given, golden, scales).items():
        most = bounds.get("most_wrong", {}).get(name)
        if most is None:
            checks.append(GoldenCheck(program, name, far, tolerance))
        else:
            checks.append(_counted(program, name, given[name], golden[name], most))
    return checks


def _counted(
    program: str, output: str, found: np.ndarray, golden: np.ndarray, most: int
) -> GoldenCheck:
    """The part of integers or booleans that is wrong, where ``most`` elements may be."""
    count = max(1, golden.size)
    wrong, allowed = wrong_elements(found, golden) / count, min(most, half_of(count)) / count
    return GoldenCheck(program, output, Deviation(wrong, wrong), Tolerance(allowed, allowed))
