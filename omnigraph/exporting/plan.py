"""Decides the precision, pipeline and path for each target, before anything is traced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnigraph.artifact import MANIFEST, SINGLE_FILE, Artifact, check_replaceable
from omnigraph.errors import ArtifactError, UsageError
from omnigraph.exporting.options import ExportOptions
from omnigraph.ledger.precision import LayerPrecision
from omnigraph.lowering import Target, find_target
from omnigraph.passes.pipeline import Pipeline
from omnigraph.precision import carrier_of
from omnigraph.quantization.options import Quantization


@dataclass(frozen=True)
class TargetJob:
    """The work of an export for one target.

    Args:
        asked: the precision that the user asked for, such as "auto".
        precision: the one whose passes and runtime carry it: for "auto", "int8".
        settings: options of the target.
    """

    target: Target
    asked: str
    precision: str
    pipeline: Pipeline
    settings: Mapping[str, str]

    @property
    def quantizes(self) -> bool:
        """Whether weights become integers or float8."""
        return self.target.schemes[self.precision] is not None

    @property
    def rounds_floats(self) -> bool:
        """Whether floats are computed in a half type."""
        return self.target.rounding(self.precision) != "fp32"

    def judges(self, options: Quantization) -> bool:
        """Whether a loss is measured, to choose the precision of each layer within a bound."""
        return options.with_defaults(self.asked, runs_here=False).max_loss is not None

    def called(self, layers: Iterable[LayerPrecision]) -> str:
        """The precision's name for the artifact: the type of floats, where no layer is quantized.

        Args:
            layers: of all programs, as they are stored.
        """
        if not self.quantizes or any(row.quantized for row in layers):
            return self.asked
        return self.target.rounding(self.precision)


def plan_jobs(target: str | Sequence[str], options: ExportOptions) -> list[TargetJob]:
    """The job of each target.

    Args:
        target: one, several in a sequence, or several joined by commas.

    Raises:
        UsageError: there is no such target, pass or option, or a target cannot compile here.
        UnsupportedError: a target cannot do the precision.
    """
    names = target.split(",") if isinstance(target, str) else list(target)
    targets = [find_target(name.strip()) for name in names]
    jobs = [_job(found, options) for found in targets]
    judges = any(job.judges(options.quantizing) for job in jobs)
    options.quantizing.check_used([job.precision for job in jobs], judges=judges)
    return jobs


def _job(target: Target, options: ExportOptions) -> TargetJob:
    if reason := target.unusable():
        raise UsageError(
            f"Target {target.name!r} cannot compile here: {reason}",
            hint="`omnigraph targets` lists those that can",
        )
    asked = options.precision or target.precisions[0]
    precision = carrier_of(asked)
    target.check_precision(precision)
    given = options.settings or {}
    settings = {name: str(given[name]) for name in given if name in target.options}
    target.check_options(settings)
    pipeline = target.passes(precision, options.passes, options.quantizing.four_bits)
    return TargetJob(target, asked, precision, pipeline, settings)


def model_settings(jobs: Sequence[TargetJob], options: ExportOptions) -> dict[str, str]:
    """The settings of the model: those that are not an option of any target."""
    of_targets = {name for job in jobs for name in job.settings}
    given = options.settings or {}
    return {name: given[name] for name in given if name not in of_targets}


def check_out(jobs: Sequence[TargetJob], out: str | os.PathLike[str] | None) -> None:
    """Refuse a path that cannot take the artifacts, before any work.

    Raises:
        UsageError: there are several targets, and ``out`` is one file.
        ArtifactError: ``out`` holds something that is not replaced, or may not be written to.
    """
    if out is None:
        return
    if len(jobs) == 1:
        if not _holds_artifacts(Path(out)):
            check_replaceable(out)
    elif Path(out).suffix == SINGLE_FILE or Path(out).is_file():
        raise UsageError(
            "Several targets do not fit into one file",
            expected="--out DIRECTORY, which gets one artifact for each",
            found=str(out),
            hint="give a directory, or export one target at a time",
        )
    elif (Path(out) / MANIFEST).is_file():
        raise UsageError(
            "Several targets do not fit into one artifact",
            expected="--out DIRECTORY, which gets one artifact for each",
            found=f"{out} has a {MANIFEST}",
            hint="give another directory, or export one target at a time",
        )


def artifact_paths(
    name: str, jobs: Sequence[TargetJob], out: str | os.PathLike[str] | None
) -> list[Path]:
    """The path of each job's artifact.

    Args:
        name: of the model.
        out: see ``omnigraph.export``; `check_out` has taken it.

    Raises:
        ArtifactError: a path holds something that is not replaced, or may not be written to.
    """
    if out is not None and len(jobs) == 1 and not _holds_artifacts(Path(out)):
        return [Path(out)]
    folder = Path(out) if out is not None else Path()
    paths = [folder / f"{name}-{job.target.name}-{job.asked}{SINGLE_FILE}" for job in jobs]
    for path in paths:
        check_replaceable(path)
    return paths


def _holds_artifacts(out: Path) -> bool:
    """Whether a path is a folder of artifacts, to which one more is added for each target."""
    return (
        out.is_dir()
        and not (out / MANIFEST).exists()
        and any(_is_artifact(path) for path in out.iterdir())
    )


def _is_artifact(path: Path) -> bool:
    if path.suffix != SINGLE_FILE and not (path / MANIFEST).is_file():
        return False
    try:
        Artifact(path, check_hashes=False)
    except ArtifactError:
        return False
    return True
