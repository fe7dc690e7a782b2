"""Runs one lowered program in its target's runtime outside an export: to inspect or to time it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omnigraph.artifact import Artifact, seal
from omnigraph.contract.comparison import Bounds, Open, Run
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import Tolerance
from omnigraph.export_job import TargetProduct, TracedProgram
from omnigraph.frontends.resolve import ModelSource
from omnigraph.lowering import Lowered, Target
from omnigraph.lowering.emulation import run_lowered
from omnigraph.manifest import build_manifest, golden_name, write_golden

if TYPE_CHECKING:
    from omnigraph.runtimes.base import Session

_NONE = Tolerance(0.0, 0.0)
_SOURCE = ModelSource("bisection", ())


@dataclass(frozen=True)
class Emitted:
    """An artifact of one program.

    Args:
        artifact: its files.
        open: gives the function that runs the program: in the target's runtime, or, where that is
            not here, its lowered Graph in onnxruntime.
    """

    artifact: Artifact
    open: Open


class Emitter:
    """Emits one program for a target, and runs it in that target's runtime."""

    def __init__(
        self, target: Target, precision: str, options: Mapping[str, str], golden: Reference
    ) -> None:
        self.target, self.precision, self.options = target, precision, options
        self.golden = golden

    def run(self, lowered: Lowered, directory: Path) -> Run:
        """Emit the program into ``directory``, and give the function that runs it."""
        return self.session(lowered, directory).run

    def session(self, lowered: Lowered, directory: Path) -> Session:
        """Emit the program into ``directory``, an empty folder, and open a Session of it."""
        return self.target.open_session(self.emit(lowered, directory).artifact)

    def emit(self, lowered: Lowered, directory: Path) -> Emitted:
        """Emit the program into ``directory``, an empty folder."""
        program = Lowered(
            lowered.name,
            lowered.graph.clone(),  # emitting may change it
            lowered.inputs,
            lowered.outputs,
            lowered.dims,
            lowered.state,
        )
        emission = self.target.emit(
            [program], directory, precision=self.precision, options=self.options
        )
        product = TargetProduct(
            self.precision,
            self.options,
            emission,
            {lowered.name: []},
            {lowered.name: {}},
            {lowered.name: Bounds(_NONE, _NONE)},
        )
        traced = TracedProgram(
            lowered.name,
            lowered.inputs,
            lowered.outputs,
            lowered.dims,
            lowered.state,
            [],
            self.golden,
            depth=1,
            contraction=1,
            graph=None,
        )
        write_golden(directory / golden_name(lowered.name), self.golden)
        seal(directory, build_manifest(_SOURCE, self.target, product, [traced]))
        artifact = Artifact(directory, check_hashes=False)
        return Emitted(artifact, self.target.run_emitted if emission.executes_here else run_lowered)
