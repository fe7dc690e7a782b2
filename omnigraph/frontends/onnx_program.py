"""The program of an ONNX file: the sizes at which it runs, example values, and what its past is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from omnigraph.contract.graph_check import FileRunner
from omnigraph.errors import TraceError, UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.onnx_file import read_onnx
from omnigraph.frontends.onnx_inputs import chooses_a_branch, examples, with_known_numbers
from omnigraph.frontends.onnx_module import OnnxModule
from omnigraph.frontends.onnx_names import name_axes
from omnigraph.frontends.onnx_probe import Cost, OnnxProbe, table_sizes
from omnigraph.frontends.roles import state_of
from omnigraph.frontends.size_search import FoundSizes, SizeSearch
from omnigraph.graph import Graph
from omnigraph.program import Case, Dim, Program, TensorSpec, dim_terms
from omnigraph.tracing.module_call import array

#: Sizes of example inputs: all different, so that none agree by chance.
_SIZES = (2, 5, 3, 7, 4, 6, 9, 8)


def program_from_onnx(
    path: Path,
    *,
    inputs: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """The program ``forward`` of an ONNX file of any opset, from any exporter.

    The file is run at one size after another, to find the range of each dimension, the multiples
    that it takes, and the dimensions that must be equal. One that has a single size is fixed.

    Args:
        path: the file; its reference is the file itself, run by onnxruntime with its optimizations
            off.
        inputs: example values (arrays or tensors) of any of the inputs, for those whose values
            cannot be guessed: token ids are drawn from the table that they index, masks hide
            padding, floats are normal.
        dynamic: for each input, axis to dimension name, in place of the file's own names.

    Raises:
        UsageError: the file is not one that can be compiled, or its inputs are not as given.
        TraceError: it does not run on the example, or at none of the sizes tried.
    """
    graph = read_onnx(path)
    given = _given(path, graph, inputs or {})
    axes, renamed = name_axes(graph)
    axes = {**axes, **{name: dict(named) for name, named in (dynamic or {}).items()}}
    runner, probe = FileRunner(path), OnnxProbe(path)
    module = OnnxModule(path, runner, renamed, probe.shapes)
    found = _Search(module, probe, graph, axes, given).find()
    ties = dict(found.ties)
    axes = {
        name: {axis: _tied(dim, ties) for axis, dim in named.items()}
        for name, named in axes.items()
    }
    renamed = {**ties, **{word: _tied(dim, ties) for word, dim in renamed.items()}}
    module = OnnxModule(path, runner, renamed, probe.shapes)
    program = _program(module, graph, axes, given, found.example)
    program = replace(program, dims={**program.dims, **found.ranges}, to_graph=module.graph)
    return _with_limits(_with_state(program), found.ranges).with_dims({})


def _program(
    module: OnnxModule,
    graph: Graph,
    axes: Mapping[str, Mapping[int, str]],
    given: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
) -> Program:
    """The program that draws inputs like an example of these sizes."""
    program = program_from_module(module, examples(graph, axes, given, sizes), dynamic=axes)
    return with_known_numbers(program, graph, given)


def _given(path: Path, graph: Graph, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    names = [value.name or "" for value in graph.graph.inputs]
    for name in inputs:
        if name not in names:
            raise UsageError(
                f"{path} has no input {name!r}",
                expected=", ".join(names),
                hint="`omnigraph inspect MODEL` shows the inputs of a model",
            )
    return {name: torch.as_tensor(value) for name, value in inputs.items()}


def _tied(dim: str, ties: Mapping[str, str]) -> str:
    """A dimension, or a sum of some, by the names that tied dimensions have in common."""
    return " + ".join(ties.get(term, term) for term in dim_terms(dim))


@dataclass
class _Search:
    """Runs a file at one size after another.

    Args:
        axes: for each input, axis to dimension name.
        given: example inputs, whose sizes are kept.
    """

    module: OnnxModule
    probe: OnnxProbe
    graph: Graph
    axes: Mapping[str, Mapping[int, str]]
    given: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        self._cost = Cost(self.graph)
        self._branches = any(map(chooses_a_branch, self.graph.graph.inputs))
        self._specs = [
            TensorSpec(
                value.name or "",
                "float32",
                tuple(
                    dim if isinstance(dim, int) else self.axes[value.name or ""][axis]
                    for axis, dim in enumerate(value.shape or ())
                ),
            )
            for value in self.graph.graph.inputs
        ]

    def find(self) -> FoundSizes:
        """The sizes at which the file runs.

        Raises:
            TraceError: at none of those that were tried.
        """
        first, kept = self._first()
        names = tuple(first)
        search = SizeSearch(
            names, self._groups(), self._starts, self._affordable, table_sizes(self.graph), kept
        )
        start = search.start(first)
        if start is None:
            raise self._refusal(first)
        self._program = _program(self.module, self.graph, self.axes, self.given, start)
        self._cost.measure(self.probe.products, self._specs, start)
        return replace(search, runs=self._runs, _known={}).find(start)

    def _first(self) -> tuple[dict[str, int], frozenset[str]]:
        """The sizes to try first: those of the given inputs, and small ones."""
        sizes = {
            dim: self.given[name].shape[axis]
            for name in self.given
            for axis, dim in self.axes.get(name, {}).items()
            if axis < self.given[name].ndim
        }
        terms = [t for named in self.axes.values() for d in named.values() for t in dim_terms(d)]
        names = [name for name in dict.fromkeys(terms) if not name.isdigit()]
        free = [name for name in names if name not in sizes]
        sizes |= {name: _SIZES[i % len(_SIZES)] for i, name in enumerate(free)}
        return {name: sizes[name] for name in names}, frozenset(names) - frozenset(free)

    def _groups(self) -> list[list[str]]:
        """The dimensions on each axis of the inputs: one dimension may have a name for each."""
        last = max((len(spec.shape) for spec in self._specs), default=1)
        on_axes = (
            dict.fromkeys(
                dim
                for spec in self._specs
                for dim in spec.shape[axis : axis + 1]
                if isinstance(dim, str) and dim.isidentifier()
            )
            for axis in range(last)
        )
        return [list(dims) for dims in on_axes]

    def _starts(self, sizes: Mapping[str, int]) -> bool:
        return self._fault(examples(self.graph, self.axes, self.given, sizes)) is None

    def _runs(self, sizes: Mapping[str, int]) -> bool:
        cases = (Case("sizes", sizes, seed=seed) for seed in range(2 if self._branches else 1))
        return all(self._fault(self._program.make_inputs(case)) is None for case in cases)

    def _fault(self, inputs: Mapping[str, torch.Tensor]) -> str | None:
        return self.probe.fault({name: array(tensor) for name, tensor in inputs.items()})

    def _affordable(self, sizes: Mapping[str, int]) -> bool:
        return self._cost.affordable(self._specs, sizes)

    def _refusal(self, sizes: Mapping[str, int]) -> TraceError:
        inputs = examples(self.graph, self.axes, self.given, sizes)
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        return TraceError(
            f"{self.module.path} does not run in onnxruntime on the inputs that were drawn for it, "
            "nor at other sizes",
            expected="a run on " + shapes,
            found=self._fault(inputs),
            hint="give inputs that it takes: --example FILE.npz, with an array for each input, or "
            "from Python omnigraph.export(path, ..., inputs={...})",
        )


def _with_state(program: Program) -> Program:
    """The program with its pairs of past and present, if it is a step of a decoder."""
    state = state_of((spec.name for spec in program.inputs), program.outputs)
    if not state:
        return program
    inputs = tuple(
        replace(spec, default=0)
        if spec.name in state
        else replace(spec, default=1)
        if spec.role == "mask"
        else spec
        for spec in program.inputs
    )
    dims = dict(program.dims)
    if "past" in dims:
        dims["past"] = Dim(0, dims["past"].max)
    return replace(program, inputs=inputs, dims=dims, state=tuple(state.items()))


def _with_limits(program: Program, found: Mapping[str, Dim]) -> Program:
    """The program with each range that is not the default in words."""
    notes = (
        f"dimension {name!r} of program {program.name!r} can be {program.dims[name]}: the file "
        "runs at these sizes, of those tried"
        for name, sizes in found.items()
        if sizes != Dim()
    )
    return replace(program, limits=tuple(notes))
