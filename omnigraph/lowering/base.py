"""The interface of a target."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.errors import UnsupportedError, UsageError, suggest
from omnigraph.graph import Graph, describe
from omnigraph.passes.analysis.quantization.scheme import FourBits, Scheme
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.pipelines import quantized
from omnigraph.precision import FLOAT, PRECISIONS
from omnigraph.program import Dim, TensorSpec

if TYPE_CHECKING:
    from omnigraph.runtimes.base import Session

_MOST_NAMED = 8


@dataclass(frozen=True)
class Lowered:
    """One program after a target's passes: its Graph, and the specs of its tensors.

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
    """The files that a target wrote, and what the manifest says of them.

    Args:
        files: for each program, role to file name relative to the artifact.
        device: the device it was made for, such as "cpu".
        requires: versions the runtime must have, such as ``{"onnxruntime": ">=1.23"}``.
        details: for each program, further facts for its users and its runtime.
        executes_here: whether the contract can run the artifact on this machine. If not, it runs
            each program's file of the role "lowered" instead: the ONNX file that the vendor's
            compiler read.
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
    #: By precision, the default first: how this target quantizes; None is floats only.
    schemes: ClassVar[Mapping[str, Scheme | None]]
    #: The Session that runs its artifacts, as ``package.module:Class``.
    session: ClassVar[str]
    #: The type of floats around what is quantized: "fp32", "fp16" or "bf16".
    floats_around: ClassVar[str] = "fp32"
    #: Its own options, name to description; given as ``--set name=value``.
    options: ClassVar[Mapping[str, str]] = {}

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions it supports, the default first."""
        return tuple(self.schemes)

    @property
    def offered(self) -> tuple[str, ...]:
        """The precisions that one may ask for: its own, and "auto", where one carries it."""
        carried = (p.name for p in PRECISIONS.values() if p.carrier in self.schemes)
        return (*self.schemes, *carried)

    @abc.abstractmethod
    def unusable(self) -> str | None:
        """Why this target cannot compile here, or None."""

    def unrunnable(self) -> str | None:
        """Why artifacts of this target cannot run here, or None; usually as `unusable`."""
        return self.unusable()

    @abc.abstractmethod
    def supports(self, node: ir.Node, precision: str) -> str | None:
        """Why the target cannot take this node of a lowered Graph, or None."""

    @abc.abstractmethod
    def pipeline(self, precision: str) -> Pipeline:
        """The passes from a traced Graph to one that this target takes, without quantization.

        Usually those of ``common``, and the target's own in the stage ``kernels``.
        """

    def passes(
        self, precision: str, edits: str = "", four_bits: FourBits | None = None
    ) -> Pipeline:
        """The whole pipeline of a precision, with its scheme's passes and the edits.

        Args:
            edits: passes to add, to set and to leave out; see `Pipeline.edited`.
            four_bits: how to store weights of four bits, where the scheme is to differ.

        Raises:
            UsageError: an edit names a pass that is not there.
        """
        pipeline = self.pipeline(precision)
        if (scheme := self.schemes[precision]) is not None:
            scheme = (four_bits or FourBits()).apply(scheme)
            pipeline = replace(pipeline, quantized=quantized(scheme))
        return pipeline.edited(edits)

    def layer_schemes(
        self, choices: Mapping[str, str], four_bits: FourBits
    ) -> dict[str, Scheme | None]:
        """The scheme of each layer that has a precision of its own, by module path.

        Args:
            choices: by module path, a precision; "float" is none.
            four_bits: how to store weights of four bits, where the scheme is to differ.

        Raises:
            UnsupportedError: this target does not quantize to one of the precisions.
        """
        found: dict[str, Scheme | None] = {}
        for layer, precision in choices.items():
            scheme = self.schemes.get(precision)
            if scheme is None and precision != FLOAT:
                known = [name for name, scheme in self.schemes.items() if scheme is not None]
                raise UnsupportedError(
                    f"Target {self.name!r} cannot quantize layer {layer!r} to {precision!r}",
                    expected=" or ".join([FLOAT, *known]),
                    hint="each layer is quantized to one of these, or left in float",
                )
            found[layer] = None if scheme is None else four_bits.apply(scheme)
        return found

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
            UsageError: an option has an invalid value.
        """

    def open_session(self, artifact: Artifact, **options: Any) -> Session:
        """A Session over an artifact of this target, by the class that the target names.

        Args:
            options: of the Session, such as ``program``.

        Raises:
            DeviceError: the vendor's runtime or the device is not here.
        """
        module, _, name = self.session.partition(":")
        return getattr(importlib.import_module(module), name)(artifact, **options)

    @contextmanager
    def run_emitted(self, artifact: Artifact, program: str) -> Iterator[Run]:
        """Give the function that runs a program of an artifact in this target's own runtime."""
        with self.open_session(artifact, program=program, variant="whole") as session:
            yield session.run

    @abc.abstractmethod
    def run_unrounded(self, artifact: Artifact, program: str) -> AbstractContextManager[Run]:
        """Give the function that runs a program of an artifact without rounding any activation.

        Floats are computed in fp32, and weights are those that the artifact stores, so that the
        outputs differ from the Graph that was emitted by the order of sums alone.

        Args:
            artifact: a directory, of this target.
        """

    @abc.abstractmethod
    def constant_hashes(self, artifact: Artifact, program: str, sizes: Collection[int]) -> set[str]:
        """The sha256 of each constant in a program's vendor file, of those of the given sizes.

        Args:
            artifact: a directory, of this target.
            sizes: in bytes.
        """

    def emulate(self, graph: Graph, precision: str) -> None:
        """Let a lowered Graph round, in onnxruntime, as the target's runtime does by itself.

        A target overrides this where its runtime rounds more than the Graph says. It says how far
        the artifact's outputs may be from those of the Graph.
        """
        EmulateBfloat16()(graph)

    def rounding(self, precision: str) -> str:
        """The coarsest type that floats are rounded to: "fp32", "fp16" or "bf16"."""
        if self.schemes[precision] is not None:
            return self.floats_around
        return PRECISIONS[precision].floats

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that this target does not support.

        Raises:
            UnsupportedError: naming those it supports.
        """
        if precision not in self.precisions:
            raise UnsupportedError(
                f"Target {self.name!r} cannot do precision {precision!r}",
                expected=" or ".join(self.offered),
                hint=suggest(
                    precision, self.offered, f"leave --precision out for {self.precisions[0]}"
                ),
            )

    def check_options(self, options: Mapping[str, str]) -> None:
        """Refuse an option that this target does not have.

        Raises:
            UsageError: naming those it has.
        """
        for name in options:
            if name not in self.options:
                raise UsageError(
                    f"Target {self.name!r} has no option {name!r}",
                    expected=" or ".join(self.options) or "none",
                    hint=suggest(
                        name, self.options, "`omnigraph targets --json` describes each option"
                    ),
                )

    def check_nodes(self, program: str, graph: Graph, precision: str) -> None:
        """Refuse a lowered Graph that has nodes the target cannot take, before its compiler runs.

        Raises:
            UnsupportedError: naming each such node, the module it came from, and the reason.
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
