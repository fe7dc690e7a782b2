"""The program of an ONNX file: example values for its inputs, and what its past is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from omnigraph.errors import OmniGraphError, TraceError, UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.onnx_file import read_onnx
from omnigraph.frontends.onnx_module import OnnxModule
from omnigraph.frontends.onnx_names import name_axes
from omnigraph.frontends.roles import state_of
from omnigraph.graph import Graph
from omnigraph.program import Dim, Program, dim_terms, evaluate_dim

#: Sizes of example inputs: all different, so that none agree by chance.
_SIZES = (2, 5, 3, 7, 4, 6, 9, 8)
#: Ops that pass integers on, perhaps beside a few others.
_HANDS_ON = frozenset(
    "Cast Clip Concat Expand Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze".split()
)


def program_from_onnx(
    path: Path,
    *,
    inputs: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """The program ``forward`` of an ONNX file of any opset, from any exporter.

    Args:
        path: the file; its reference is the file itself, run by onnxruntime with its optimizations
            off.
        inputs: example values (arrays or tensors) of any of the inputs, for those whose values
            cannot be guessed: token ids are drawn from the table that they index, masks hide
            padding, floats are normal.
        dynamic: for each input, axis to dimension name, in place of the file's own names.

    Raises:
        UsageError: the file is not one that can be compiled, or its inputs are not as given.
        TraceError: it does not run on the example.
    """
    graph = read_onnx(path)
    names = [value.name or "" for value in graph.graph.inputs]
    for name in inputs or {}:
        if name not in names:
            raise UsageError(
                f"{path} has no input {name!r}",
                expected=", ".join(names),
                hint="`omnigraph inspect MODEL` shows the inputs of a model",
            )
    axes, renamed = name_axes(graph)
    axes = {**axes, **{name: dict(named) for name, named in (dynamic or {}).items()}}
    module = OnnxModule(path, renamed)
    examples = _examples(graph, axes, inputs or {})
    _check_runs(module, examples)
    program = program_from_module(module, examples, dynamic=axes)
    return _with_state(replace(program, to_graph=module.graph))


def _check_runs(module: OnnxModule, examples: Mapping[str, torch.Tensor]) -> None:
    try:
        module(**examples)
    except OmniGraphError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in examples.items())
        raise TraceError(
            f"{module.path} does not run in onnxruntime on the inputs that were drawn for it",
            expected="a run on " + shapes,
            found=str(error).strip().splitlines()[0][:300],
            hint="give examples of the values it takes: omnigraph.export(path, ..., inputs={...})",
        ) from error


def _examples(
    graph: Graph, axes: Mapping[str, Mapping[int, str]], given: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """An example of each input, those given among them, at sizes that agree with each other."""
    draw = np.random.default_rng(0)
    known = {name: torch.as_tensor(value) for name, value in given.items()}
    sizes = {
        dim: known[name].shape[axis]
        for name in known
        for axis, dim in axes.get(name, {}).items()
        if axis < known[name].ndim
    }
    terms = [t for named in axes.values() for d in named.values() for t in dim_terms(d)]
    free = [name for name in dict.fromkeys(terms) if not name.isdigit() and name not in sizes]
    sizes |= {name: _SIZES[i % len(_SIZES)] for i, name in enumerate(free)}
    examples = {}
    for value in graph.graph.inputs:
        name = value.name or ""
        shape = [
            dim if isinstance(dim, int) else evaluate_dim(axes[name][axis], sizes)
            for axis, dim in enumerate(value.shape or ())
        ]
        examples[name] = (
            known[name] if name in known else torch.from_numpy(_drawn(value, shape, draw))
        )
    return examples


def _drawn(value: ir.Value, shape: Sequence[int], draw: np.random.Generator) -> np.ndarray:
    """Values for an input, by its dtype, its name, and the tables that it indexes."""
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if dtype == np.bool_ or "mask" in (value.name or ""):
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    rows = min(_tables(value), default=2)
    ids = draw.integers(0, rows, shape).astype(dtype)
    ids.reshape(-1)[-1:] = rows - 1  # others are drawn up to the largest of the example
    ids.reshape(-1)[:1] = 0
    return ids


def _tables(value: ir.Value) -> Iterator[int]:
    """The number of rows of each table that a value's integers index."""
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop()
        for user, position in current.uses():
            if user.op_type == "Gather" and position == 1 and (table := user.inputs[0]) is not None:
                axis = user.attributes.get_int("axis", 0)
                rows = table.shape[axis] if table.shape is not None else None
                if isinstance(rows, int):
                    yield rows
            elif user.op_type in _HANDS_ON:
                waiting += [output for output in user.outputs if output not in seen]
                seen.update(user.outputs)


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
