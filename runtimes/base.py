"""Session: the part of a runtime that is the same for every vendor."""

from __future__ import annotations

import abc
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, ClassVar

import numpy as np

from omnigraph.artifact import Artifact, ProgramEntry
from omnigraph.errors import DeviceError, InputError, OmniGraphError, RunError, UsageError, suggest
from omnigraph.program import TensorSpec
from omnigraph.runtimes.generation.session import GeneratesText
from omnigraph.runtimes.golden import GoldenCheck, check_golden, with_golden
from omnigraph.runtimes.input_binder import InputBinder, shapes_text
from omnigraph.runtimes.kernels import Kernel
from omnigraph.runtimes.load_figures import LoadFigures, resident_bytes
from omnigraph.runtimes.variants import AUTO, MISSED, WHOLE, Variants
from omnigraph.runtimes.vendor_errors import message_of

#: A compiled program: arrays in the order of its inputs to arrays in the order of its outputs.
#: Safe to call from several threads.
Executable = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


class Session(GeneratesText, abc.ABC):
    """An artifact that is loaded and ready to run, in any vendor's runtime.

    The default program is compiled at once, others when they are first used. ``run`` may be called
    from several threads at a time. Use as a context manager, or call ``close``.
    """

    #: The name of the target whose artifacts this runs.
    target: ClassVar[str]
    #: What its artifacts run on, in a few words.
    purpose: ClassVar[str] = ""
    #: By dtype of an input, the dtype that the runtime computes it in, where that holds less.
    narrowed: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        artifact: Artifact,
        *,
        device: str = "auto",
        threads: int | None = None,
        program: str | None = None,
        variant: str = AUTO,
    ) -> None:
        if threads is not None and threads < 1:
            raise UsageError(
                "A run needs a thread",
                expected="threads of at least 1, or None for what the runtime chooses",
                found=str(threads),
                hint="leave threads out",
            )
        self.artifact = artifact
        self._default = artifact.manifest["default_program"]
        if program is not None:
            self.entry(program)
            self._default = program
        self._variants = Variants(artifact.manifest)
        self._variant = None if len(self.variants) == 1 and variant == AUTO else variant
        first = self._variants.program(self._default, variant)
        #: How many requests each variant answered that the session chose.
        self.answered: Counter[str] = Counter()
        self.device = self._open_device(device)
        self.threads = threads
        self.load_figures: dict[str, LoadFigures] = {}
        self._programs: dict[str, _LoadedProgram] = {}
        self._lock = threading.Lock()
        self._closed = False
        try:
            self._program(first)
        except BaseException:
            self.close()
            raise

    # What each runtime implements -----------------------------------------------------------------

    @classmethod
    def unrunnable(cls) -> str | None:
        """Why artifacts of this target cannot run on this machine, or None."""
        return None

    def kernels(self, program: str | None = None) -> list[Kernel] | None:
        """The kernels that one program runs; None where the runtime does not report them.

        Args:
            program: None is the default program.

        Raises:
            InputError: there is no such program.
        """
        self.entry(program)
        return None

    @abc.abstractmethod
    def _open_device(self, device: str) -> str:
        """The device that ``device`` ("auto" or a name) stands for.

        Raises:
            DeviceError: the vendor's runtime or that device is not here.
        """

    @abc.abstractmethod
    def _compile(self, name: str, entry: ProgramEntry) -> Executable:
        """Make one program ready to run."""

    def _release(self) -> None:
        """Free what the device holds, after the programs are gone."""

    # What a user calls ----------------------------------------------------------------------------

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of the programs, the default one first."""
        return (self._default, *(n for n in self.artifact.programs if n != self._default))

    @property
    def variants(self) -> tuple[str, ...]:
        """What ``variant=`` may be besides "auto": "whole", and those with fewer heads."""
        return self._variants.names

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
        name = self._default if program is None else program
        if name not in self.artifact.programs:
            raise InputError(
                f"There is no program {name!r} in {self.artifact.path}",
                expected=" or ".join(self.programs),
                hint=suggest(name, self.programs, "pass program=… one of these names"),
            )
        return self.artifact.programs[name]

    def run(
        self,
        feeds: Mapping[str, Any] | None = None,
        /,
        *,
        program: str | None = None,
        variant: str | None = None,
        **named: Any,
    ) -> dict[str, np.ndarray]:
        """Run one program on named inputs.

        Where an artifact has variants with fewer heads, "auto" gives the whole model's outputs. The
        gates that are known before any attention show which heads the request needs, and the
        smallest variant with these runs. If a later gate opens a head that it lacks, a larger one
        runs. Programs with a state, and others whose tensors change their shapes with the variant,
        run whole unless a variant is named: use it in all calls of one request (`smallest_variant`
        proposes one).

        Args:
            feeds: inputs by name, for names that are no Python identifiers.
            program: which program; None is the default one.
            variant: "auto", "whole" or one of ``variants``; None is what the session was loaded
                with. A named one gives the outputs of the model without the other heads.
            named: inputs by name. Each is a numpy array, or any tensor that supports DLPack.

        Returns:
            The outputs by name.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or has a value
                outside its range; a state is given in part; or there is no such variant.
            RunError: the vendor's runtime failed; its error is the cause.
        """
        name = self._default if program is None else program
        given = named if feeds is None else _joined(feeds, named)
        chosen = self._variant if variant is None else variant
        if chosen is not None:
            if chosen == AUTO and self._variants.chooses(name):
                return self._run_smallest(name, given)
            name, asked = self._variants.program(name, chosen), name
            if name != asked:
                results = self._execute(name, self._program(name).binder.bind(given))
                results.pop(MISSED, None)
                return results
        loaded = self._programs.get(name)
        if loaded is None:
            loaded = self._program(name)
        return self._execute(name, loaded.binder.bind(given))

    def smallest_variant(self, feeds: Mapping[str, Any] | None = None, /, **named: Any) -> str:
        """The smallest variant with every head that the gates before any attention leave open.

        Args:
            feeds: inputs of a request by name; those that the gates do not read are ignored.
            named: the same.

        Returns:
            A name for ``variant=``; "whole" where no variant has them, or there are no such gates.
        """
        gates = self._variants.gates
        if gates is None:
            return WHOLE
        names = {spec.name for spec in self.entry(gates).inputs}
        given = {name: v for name, v in _joined(feeds or {}, named).items() if name in names}
        opened = self._execute(gates, self._program(gates).binder.bind(given))
        return self._variants.covering(None, opened)[0]

    def verify(
        self, programs: Sequence[str] | None = None, *, allow_missing: bool = False
    ) -> list[GoldenCheck]:
        """Run the golden inputs of each program here and measure each output's deviation.

        Args:
            programs: the programs to run; None is all.
            allow_missing: pass over programs that have no golden pair.

        Raises:
            InputError: there is no such program.
            ContractError: a program has no golden pair, and ``allow_missing`` is off.
            ArtifactError: a golden pair is not of the program's inputs and outputs.
        """
        checks = []
        named = list(programs or self.programs)
        for name in named:
            self.entry(name)
        for name in with_golden(self.artifact, named, allow_missing):
            for variant in (WHOLE, AUTO) if self._variants.chooses(name) else (WHOLE,):
                run = partial(self.run, program=name, variant=variant)
                checks += check_golden(self.artifact, name, run)
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

    def _run_smallest(self, name: str, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The whole program's outputs, from the smallest variant with all heads that are needed."""
        gates = self._variants.gates
        assert gates is not None
        whole = self._program(name)
        arrays = whole.binder.bind(given)
        by_name = dict(zip((spec.name for spec in self.entry(name).inputs), arrays, strict=True))
        opened = self._execute(gates, [by_name[spec.name] for spec in self.entry(gates).inputs])
        results: dict[str, np.ndarray] = {}
        for variant in self._variants.covering(name, opened):
            results = self._execute(self._variants.program(name, variant), arrays)
            missed = results.pop(MISSED, None)
            if missed is None or not missed.any():
                with self._lock:
                    self.answered[variant] += 1
                break
        return results

    def _execute(self, name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Run one program on the arrays that its binder gave."""
        loaded = self._programs.get(name) or self._program(name)
        try:
            results = loaded.executable(arrays)
        except OmniGraphError:
            raise
        except Exception as error:
            raise RunError(
                f"Program {name!r} failed in the runtime of {self.target!r} on "
                f"{shapes_text(loaded.binder.specs, arrays)}",
                found=message_of(error),
                hint="`omnigraph verify` shows whether the artifact runs here on its own inputs; "
                "if it does, the model does not take these sizes or values",
            ) from error
        return dict(zip(loaded.output_names, results, strict=True))

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
                        found=message_of(error),
                        hint="see `omnigraph targets`; an artifact may need the version of the "
                        "runtime that its manifest names",
                    ) from error
                self.load_figures[name] = LoadFigures(
                    time.perf_counter() - start, max(0, resident_bytes() - before)
                )
                binder = InputBinder(
                    name,
                    entry.inputs,
                    self.artifact.manifest["dimensions"],
                    state=[into for into, _ in entry.state],
                    narrowed=self.narrowed,
                )
                names = tuple(spec.name for spec in entry.outputs)
                self._programs[name] = _LoadedProgram(executable, binder, names)
            return self._programs[name]


@dataclass(frozen=True)
class _LoadedProgram:
    executable: Executable
    binder: InputBinder
    output_names: tuple[str, ...]


def _joined(feeds: Mapping[str, Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Inputs from a mapping and by keyword.

    Raises:
        InputError: there is no mapping, or an input is given twice.
    """
    if not isinstance(feeds, Mapping):
        raise InputError(
            "The inputs of a run are no mapping",
            expected="a dict of arrays by the names of the inputs",
            found=type(feeds).__name__,
            hint="session.run({'input_ids': ids}), or session.run(input_ids=ids)",
        )
    for name in named:
        if name in feeds:
            raise InputError(
                f"Input {name!r} is given twice",
                expected="each input once",
                found="it is in the mapping, and a keyword too",
                hint="leave one of them out",
            )
    return {**feeds, **named} if named else feeds
