"""Where the numbers of a program first differ too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omnigraph.contract.comparison import Outputs
from omnigraph.contract.tolerance import Deviation, Tolerance, deviations, output_scales
from omnigraph.export_job import TracedProgram
from omnigraph.exporting.stage_check import StageCheck


@dataclass(frozen=True)
class Parting:
    """Where the numbers of a program first differ too much from the reference.

    Args:
        stage: the pass, the trace, or the artifact of a target after which they do.
        node: the first node whose result this stage changed, with its module; None where no single
            node was found.
        output: the output of the program that is too far from the reference.
        case: the input set on which it is.
        error: the error that stopped the stage, such as an illegal Graph.
    """

    program: str
    stage: str
    node: str | None
    output: str | None = None
    case: str | None = None
    deviation: Deviation | None = None
    tolerance: Tolerance | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready fields, without unknown ones."""
        fields = {
            "program": self.program,
            "stage": self.stage,
            "node": self.node,
            "output": self.output,
            "case": self.case,
            "rms": self.deviation.rms if self.deviation else None,
            "peak": self.deviation.peak if self.deviation else None,
            "tolerance": self.tolerance.to_dict() if self.tolerance else None,
            "error": self.error,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        text = f"program {self.program!r}: the numbers part at {self.stage}"
        if self.node:
            text += f", first at {self.node}"
        if self.error is not None:
            return f"{text}, which failed: {self.error}"
        text += "" if self.node else ", but no single node was found"
        if self.deviation is not None and self.tolerance is not None:
            text += (
                f"; output {self.output!r} on input set {self.case!r} is at "
                f"{self.deviation.rms:.2e} rms, and {self.tolerance.rms:.2e} is allowed"
            )
        return text


def parted_output(
    item: TracedProgram, found: Sequence[Outputs], check: StageCheck
) -> tuple[str, str, Deviation] | None:
    """The first output too far from the last stage's, with its input set; None where none is."""
    scales = output_scales(check.outputs, check.least)
    for outputs, before, reference in zip(found, check.outputs, item.references, strict=True):
        for output, deviation in deviations(outputs, before, scales).items():
            if not deviation.within(check.tolerance):
                return output, reference.case.name, deviation
    return None
