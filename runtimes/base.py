"""Session: what every runtime does, whatever the vendor."""

from __future__ import annotations

import abc
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from omnigraph.artifact import Artifact, ProgramEntry
from omnigraph.contract import Deviation, Tolerance, deviations
from omnigraph.errors import DeviceError, InputError, OmniGraphError, RunError
from omnigraph.program import Dim, TensorSpec, dim_terms

#: A compiled program: arrays in the order of its inputs to arrays in the order of its outputs.
#: Safe to call from several threads.
Executable = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class GoldenCheck:
    """How one output of the golden pair came out on this machine."""

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
            f"program {self.program!r}, output {self.output!r}: error {self.deviation.rms:.2e} rms, "
            f"{self.deviation.peak:.2e} peak; tolerance {self.tolerance.rms:.2e} rms, "
            f"{self.tolerance.peak:.2e} peak"
        )


@dataclass(frozen=True)
class LoadFigures:
    """What loading one program took: seconds, and growth of the process's resident bytes."""

    seconds: float
    bytes: int


class Session(abc.ABC):
    """An artifact that is loaded and ready to run, whatever runs it.

    The default program is compiled at once, others when they are first used. ``run`` may be called
    from several threads at a time. Use as a context manager, or call ``close``.
    """

    #: The name of the target whose artifacts this runs.
    target: ClassVar[str]

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "auto",
        threads: int | None = None,
        program: str | None = None,
    ) -> None:
        self.artifact = artifact
        self.device = self._open_device(device)
        self.threads = threads
        self.load_figures: dict[str, LoadFigures] = {}
        self._programs: dict[str, _LoadedProgram] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._default = program or artifact.manifest["default_program"]
        self._program(self._default)

    # What a runtime has to say --------------------------------------------------------------------

    @abc.abstractmethod
    def _open_device(self, device: str) -> str:
        """The device that ``device`` ("auto" or a name) stands for.

        Raises:
            DeviceError: the vendor's runtime or that device is not here.
        """

    @abc.abstractmethod
    def _compile(self, name: str, entry: ProgramEntry) -> Executable:
        """Make one program ready to run."""

    def _release(self) -> None:  # noqa: B027 (most runtimes free what they hold by themselves)
        """Free what the device holds, after the programs are gone."""

    # What a person calls --------------------------------------------------------------------------

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the programs, the default one first."""
        return (self._default, *(n for n in self.artifact.programs if n != self._default))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the default program."""
        return self.entry().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the default program."""
        return self.entry().outputs

    def entry(self, program: str | None = None) -> ProgramEntry:
        """The inputs, outputs and files of one program.

        Raises:
            InputError: there is no such program.
        """
        name = program or self._default
        if name not in self.artifact.programs:
            raise InputError(
                f"There is no program {name!r} in {self.artifact.path}",
                expected=" or ".join(self.programs),
                hint="pass program=… one of these names",
            )
        return self.artifact.programs[name]

    def run(
        self,
        feeds: Mapping[str, Any] | None = None,
        /,
        *,
        program: str | None = None,
        **named: Any,
    ) -> dict[str, np.ndarray]:
        """Run one program on named inputs.

        Args:
            feeds: inputs by name, for names that are no Python identifiers.
            program: which program; None is the default one.
            named: inputs by name. Each is a numpy array, or any tensor that speaks DLPack.

        Returns:
            The outputs by name.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape.
            RunError: the vendor's runtime failed; its error is the cause.
        """
        loaded = self._program(program or self._default)
        given = named if not feeds else {**feeds, **named}
        arrays = loaded.binder.bind(given)
        try:
            results = loaded.executable(arrays)
        except OmniGraphError:
            raise
        except Exception as error:
            raise RunError(
                f"Program {program or self._default!r} failed in the runtime of {self.target!r}",
                found=_first_line(error),
                hint="the inputs fit the program, so this is a fault of the artifact or the runtime: "
                "run `omnigraph verify` on it",
            ) from error
        return dict(zip(loaded.output_names, results, strict=True))

    def verify(self, programs: Sequence[str] | None = None) -> list[GoldenCheck]:
        """Run the golden inputs of each program here and measure each output's deviation."""
        checks = []
        for name in programs or self.programs:
            entry = self.entry(name)
            if entry.golden is None:
                continue
            arrays = self.artifact.arrays(entry.golden)
            feeds = {k[len("input/") :]: v for k, v in arrays.items() if k.startswith("input/")}
            golden = {k[len("output/") :]: v for k, v in arrays.items() if k.startswith("output/")}
            tolerance = Tolerance(**entry.tolerance)
            for output, found in deviations(self.run(feeds, program=name), golden).items():
                checks.append(GoldenCheck(name, output, found, tolerance))
        return checks

    def close(self) -> None:
        """Free the programs and the device; a later ``run`` is an error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._programs.clear()
                self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.artifact.manifest['name']} on {self.device}: "
            f"{', '.join(self.programs)}>"
        )

    # ----------------------------------------------------------------------------------------------

    def _program(self, name: str) -> _LoadedProgram:
        loaded = self._programs.get(name)
        if loaded is not None:
            return loaded
        with self._lock:
            if self._closed:
                raise DeviceError("This session is closed", hint="load the artifact again")
            if name not in self._programs:
                entry = self.entry(name)
                start, before = time.perf_counter(), resident_bytes()
                try:
                    executable = self._compile(name, entry)
                except OmniGraphError:
                    raise
                except Exception as error:
                    raise DeviceError(
                        f"The runtime of {self.target!r} could not load program {name!r}",
                        found=_first_line(error),
                        hint="see `omnigraph targets`; an artifact may need the version of the "
                        "runtime that its manifest names",
                    ) from error
                self.load_figures[name] = LoadFigures(
                    time.perf_counter() - start, max(0, resident_bytes() - before)
                )
                binder = InputBinder(name, entry.inputs, self.artifact.manifest["dimensions"])
                names = tuple(spec.name for spec in entry.outputs)
                self._programs[name] = _LoadedProgram(executable, binder, names)
            return self._programs[name]


@dataclass(frozen=True)
class _LoadedProgram:
    executable: Executable
    binder: InputBinder
    output_names: tuple[str, ...]


class InputBinder:
    """Checks named inputs against their specs and puts them in order. Made once, called per run."""

    def __init__(
        self, program: str, specs: Sequence[TensorSpec], ranges: Mapping[str, Sequence[int | None]]
    ) -> None:
        self.program, self.specs = program, specs
        self._names = frozenset(spec.name for spec in specs)
        self._ranges = {d: Dim(low or 0, high) for d, (low, high) in ranges.items()}
        # Per input: name, dtype, rank, axes that are fixed, named, and sums of names.
        self._plan = []
        for spec in specs:
            fixed = [(i, d) for i, d in enumerate(spec.shape) if isinstance(d, int)]
            named = [(i, d) for i, d in enumerate(spec.shape) if isinstance(d, str)]
            single = [(i, d) for i, d in named if len(dim_terms(d)) == 1]
            sums = [(i, d, dim_terms(d)) for i, d in named if len(dim_terms(d)) > 1]
            self._plan.append((spec, np.dtype(spec.dtype), len(spec.shape), fixed, single, sums))

    def bind(self, given: Mapping[str, Any]) -> list[np.ndarray]:
        """The arrays in the order of the specs, defaults filled in.

        Raises:
            InputError: an input is missing, unknown, or of the wrong dtype or shape.
        """
        if not self._names.issuperset(given):
            self._refuse_unknown(given)
        sizes: dict[str, int] = {}
        arrays: list[np.ndarray | None] = []
        for spec, dtype, rank, fixed, single, _ in self._plan:
            value = given.get(spec.name)
            if value is None:
                if spec.default is None:
                    self._refuse_missing(spec)
                arrays.append(None)
                continue
            array = value if type(value) is np.ndarray else _as_numpy(spec.name, value)
            shape = array.shape
            if array.dtype != dtype:
                self._refuse_dtype(spec, array)
            if len(shape) != rank:
                self._refuse_shape(spec, array, f"{rank} axes")
            for axis, size in fixed:
                if shape[axis] != size:
                    self._refuse_shape(spec, array, f"{size} on axis {axis}")
            for axis, dim in single:
                size = shape[axis]
                if sizes.setdefault(dim, size) != size:
                    self._refuse_shape(
                        spec, array, f"{sizes[dim]} on axis {axis} ({dim!r}, set by another input)"
                    )
            arrays.append(array)
        return self._finish(arrays, sizes)

    def _finish(self, arrays: list[np.ndarray | None], sizes: dict[str, int]) -> list[np.ndarray]:
        # A name that only a sum holds is what the sum leaves; one that nothing holds is at its least.
        for array, (_, _, _, _, single, sums) in zip(arrays, self._plan, strict=True):
            if array is not None:
                for axis, _, terms in sums:
                    unknown = [t for t in terms if t not in sizes]
                    if len(unknown) == 1 and not self._filled_by_default(unknown[0], arrays):
                        rest = sum(sizes[t] for t in terms if t in sizes)
                        sizes[unknown[0]] = array.shape[axis] - rest
        for array, (spec, dtype, _, fixed, single, sums) in zip(arrays, self._plan, strict=True):
            for _, dim in single:
                sizes.setdefault(dim, self._ranges.get(dim, Dim()).min)
            if array is not None:
                for axis, dim, terms in sums:
                    sizes[dim] = sum(sizes.setdefault(t, self._least(t)) for t in terms)
                    if array.shape[axis] != sizes[dim]:
                        self._refuse_shape(spec, array, f"{sizes[dim]} on axis {axis} ({dim!r})")
        for dim, size in sizes.items():
            if (allowed := self._ranges.get(dim)) is not None and size not in allowed:
                raise InputError(
                    f"Program {self.program!r} cannot take dimension {dim!r} of this size",
                    expected=str(allowed),
                    found=str(size),
                    hint=f"export with --dynamic {dim}=MIN:MAX to take other sizes",
                )
        return [
            self._default_array(spec, dtype, sizes) if array is None else array
            for array, (spec, dtype, *_) in zip(arrays, self._plan, strict=True)
        ]

    def _filled_by_default(self, dim: str, arrays: Sequence[np.ndarray | None]) -> bool:
        """Whether an input that was left out has this dimension, so that it is at its least."""
        return any(
            array is None and any(d == dim for _, d in single)
            for array, (_, _, _, _, single, _) in zip(arrays, self._plan, strict=True)
        )

    def _least(self, dim: str) -> int:
        return self._ranges.get(dim, Dim()).min

    def _default_array(
        self, spec: TensorSpec, dtype: np.dtype, sizes: Mapping[str, int]
    ) -> np.ndarray:
        shape = [
            d
            if isinstance(d, int)
            else sum(sizes[t] if t in sizes else self._least(t) for t in dim_terms(d))
            for d in spec.shape
        ]
        return np.full(shape, spec.default, dtype)

    # Refusals, away from the path that runs ---------------------------------------------------------

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        unknown = sorted(set(given) - self._names)
        raise InputError(
            f"Program {self.program!r} has no input {unknown[0]!r}",
            expected=", ".join(s.name for s in self.specs),
            found=", ".join(given),
            hint="`omnigraph inspect` lists the inputs of each program",
        )

    def _refuse_missing(self, spec: TensorSpec) -> None:
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} is missing",
            expected=f"{spec.dtype} {_shape_text(spec.shape)}",
            hint=f"pass {spec.name}=…",
        )

    def _refuse_dtype(self, spec: TensorSpec, array: np.ndarray) -> None:
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} has the wrong dtype",
            expected=spec.dtype,
            found=str(array.dtype),
            hint=f"convert it with .astype({spec.dtype!r}); nothing is cast silently",
        )

    def _refuse_shape(self, spec: TensorSpec, array: np.ndarray, expected: str) -> None:
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} has the wrong shape",
            expected=f"{_shape_text(spec.shape)}: {expected}",
            found=_shape_text(array.shape),
            hint="dimensions of one name have one size in all inputs of a run",
        )


def _as_numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError) as error:
            raise InputError(
                f"Input {name!r} could not be taken through DLPack",
                found=_first_line(error),
                hint="pass a CPU tensor of a numpy dtype that needs no gradient",
            ) from error
    raise InputError(
        f"Input {name!r} is no array",
        expected="a numpy array, or a tensor that has __dlpack__",
        found=type(value).__name__,
        hint="wrap it: numpy.asarray(value, dtype=…)",
    )


def _shape_text(shape: Sequence[int | str]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def check_version(package: str, found: str, artifact: Artifact) -> None:
    """Refuse a vendor's runtime that is older than the artifact needs.

    Raises:
        DeviceError: with the version that the manifest asks for.
    """
    wanted = str(artifact.manifest["requires"].get(package, ""))
    least = re.match(r">=([\d.]+)", wanted)
    if least and _numbers(found) < _numbers(least[1]):
        raise DeviceError(
            f"{artifact.path} needs another version of {package}",
            expected=wanted,
            found=found,
            hint=f"pip install '{package}{wanted}'",
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def resident_bytes() -> int:
    """Resident memory of this process in bytes, or 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            pages = int(stream.read().split()[1])
    except (OSError, ValueError):
        return 0
    import resource

    return pages * resource.getpagesize()
