"""What a target declares."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir

from omnigraph.errors import UnsupportedError, UsageError
from omnigraph.graph import Graph, describe
from omnigraph.passes.base import Pass
from omnigraph.passes.pipelines import common, quantized
from omnigraph.passes.registry import edited
from omnigraph.program import Dim, TensorSpec

_MOST_NAMED = 8


@dataclass(frozen=True)
class Lowered:
    """One program on its way to a target: its Graph, and what its tensors are called.

    Args:
        dims: the range of each dimension, and of each bounded sum of dimensions.
    """

    name: str
    graph: Graph
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    state: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Emission:
    """What a target wrote.

    Args:
        files: for each program, role to file name relative to the artifact.
        device: the device it was made for, such as "cpu".
        requires: versions the runtime must have, such as ``{"onnxruntime": ">=1.23"}``.
        details: for each program, what else a person or the runtime should know.
        executes_here: whether the artifact can be run on this machine, so that its numbers are
            compared by running it. Where not, each program's files have the role "lowered": the
            ONNX file that the vendor's compiler was given, whose numbers are compared instead.
    """

    files: Mapping[str, Mapping[str, str]]
    device: str
    requires: Mapping[str, str]
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    executes_here: bool = True


class Target(abc.ABC):
    """A compiler's back end: what it supports, its pipeline, how it emits."""

    name: ClassVar[str]
    purpose: ClassVar[str]
    #: The device whose kernels its schemes of quantization are for.
    device: ClassVar[str] = "cpu"
    #: The precisions it can do, the default first.
    precisions: ClassVar[tuple[str, ...]]
    #: Its own options, name to what it is for; given as ``--set name=value``.
    options: ClassVar[Mapping[str, str]] = {}

    @abc.abstractmethod
    def unusable(self) -> str | None:
        """Why this target cannot compile here, or None."""

    def unrunnable(self) -> str | None:
        """Why artifacts of this target cannot run here, or None; usually as for compiling."""
        return self.unusable()

    @abc.abstractmethod
    def supports(self, node: ir.Node, precision: str) -> str | None:
        """Why the target cannot take this node of a lowered Graph, or None."""

    @abc.abstractmethod
    def pipeline(self, precision: str) -> Sequence[Pass]:
        """The passes that make a traced Graph one that this target takes.

        They begin with those of ``common``, behind which `passes` puts those that quantize.
        """

    def passes(self, precision: str, edits: str = "") -> tuple[Pass, ...]:
        """The pipeline of a precision, with passes added (after the common ones) and left out.

        Raises:
            UsageError: an edit names a pass that is not there.
        """
        pipeline, place = self.pipeline(precision), len(common())
        quantizing = quantized(self.name, self.device, precision)
        return edited((*pipeline[:place], *quantizing, *pipeline[place:]), edits, place)

    @abc.abstractmethod
    def emit(
        self,
        programs: Sequence[Lowered],
        directory: Path,
        *,
        precision: str,
        options: Mapping[str, str],
    ) -> Emission:
        """Write the vendor's files into ``directory``; weights that programs share, once.

        Raises:
            CompileError: the vendor's compiler refused; its own error is the cause.
            UsageError: an option has a value that cannot be.
        """

    def rounding(self, precision: str) -> str:
        """The coarsest type that a precision rounds to: "fp32", "fp16" or "bf16"."""
        return precision

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that this target cannot do.

        Raises:
            UnsupportedError: with those it can.
        """
        if precision not in self.precisions:
            raise UnsupportedError(
                f"Target {self.name!r} cannot do precision {precision!r}",
                expected=" or ".join(self.precisions),
                hint=f"leave --precision out for {self.precisions[0]}",
            )

    def check_options(self, options: Mapping[str, str]) -> None:
        """Refuse an option that this target does not have.

        Raises:
            UsageError: with those it has.
        """
        for name in options:
            if name not in self.options:
                raise UsageError(
                    f"Target {self.name!r} has no option {name!r}",
                    expected=" or ".join(self.options) or "none",
                    hint="`omnigraph targets --json` says what each option is for",
                )

    def check_nodes(self, program: str, graph: Graph, precision: str) -> None:
        """Refuse a lowered Graph that has nodes the target cannot take, before its compiler runs.

        Raises:
            UnsupportedError: with each such node, the module it came from, and the reason.
        """
        refusals = [
            f"{describe(node)}: {reason}"
            for node in ir.traversal.RecursiveGraphIterator(graph.graph)
            if (reason := self.supports(node, precision)) is not None
        ]
        if refusals:
            more = len(refusals) - _MOST_NAMED
            raise UnsupportedError(
                f"Target {self.name!r} cannot take {len(refusals)} nodes of program {program!r}: "
                + "; ".join(refusals[:_MOST_NAMED])
                + (f"; and {more} more" if more > 0 else ""),
                hint="export to another target, or change the module named here",
            )
