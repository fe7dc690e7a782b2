"""A ``.pt2`` file, which ``torch.export.save`` wrote: its module, and the program of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.export.pt2_archive._package import load_pt2
from torch.utils import _pytree as pytree

from omnigraph.errors import UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.pt2_safety import check_no_code
from omnigraph.program import Dim, Program, dim_terms

#: Where the program's own modules stand in the wrapper.
_ROOT = "exported"
_SYMBOL = re.compile(r"[A-Za-z_]\w*")


class ExportedModule(nn.Module):
    """Calls an exported program with its inputs by name; its modules keep their paths."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.exported = torch.export.unflatten(program)
        spec = program.call_spec.in_spec
        assert spec is not None
        self._spec = spec
        self._leaves = [
            (s.arg.name, s.arg.value if isinstance(s.arg, ConstantArgument) else None)
            for s in program.graph_signature.input_specs
            if s.kind is InputKind.USER_INPUT
        ]

    def forward(self, **inputs: torch.Tensor) -> Any:
        """What the program returns, in the containers that its module returned."""
        leaves = [inputs.get(name, value) for name, value in self._leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return self.exported(*args, **kwargs)


def program_from_pt2(path: Path, *, inputs: Mapping[str, Any] | None = None) -> Program:
    """The program ``forward`` of a file that ``torch.export.save`` wrote. It runs no code of it.

    Its dimensions are those that were declared dynamic when it was exported, with their ranges.
    Axis 0 is called ``batch`` and axis 1 ``sequence``, since the file does not keep the names.

    Args:
        inputs: example tensors by name, in place of those in the file.

    Raises:
        UsageError: the file cannot be read without running code of its own, or has no example
            inputs.
        TraceError: it does not run on its example.
    """
    try:
        check_no_code(path)
        exported = load_pt2(path).exported_programs["model"]
    except UsageError:
        raise
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        raise UsageError(
            f"{path} is no exported program that can be read",
            expected="a file that torch.export.save wrote, with a torch like the one here",
            found=text.splitlines()[0][:300],
            hint="it is read without the model's code: register the classes it takes first",
        ) from error
    given = {name: torch.as_tensor(value) for name, value in (inputs or {}).items()}
    examples = {**_examples(exported, path), **given}
    symbols = _symbols(exported)
    axes: dict[str, dict[int, str]] = {}
    for name, axis, text in _dynamic_axes(exported):
        axes.setdefault(name, {})[axis] = _SYMBOL.sub(lambda m: symbols[m[0]], text)
    _check_sums(path, axes)
    program = program_from_module(ExportedModule(exported), examples, dynamic=axes)
    dims = {**program.dims, **_ranges(exported, symbols)}
    return replace(program, dims=dims, root=_ROOT)


def _examples(exported: torch.export.ExportedProgram, path: Path) -> dict[str, torch.Tensor]:
    if exported.example_inputs is None:
        raise UsageError(
            f"{path} has no example inputs",
            expected="the inputs that the program was exported with",
            hint="give them: omnigraph.export(path, ..., inputs={name: tensor})",
        )
    leaves = pytree.tree_leaves(exported.example_inputs)
    specs = [s for s in exported.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    return {
        spec.arg.name: leaf
        for spec, leaf in zip(specs, leaves, strict=True)
        if isinstance(spec.arg, TensorArgument)
    }


def _dynamic_axes(exported: torch.export.ExportedProgram) -> Iterator[tuple[str, int, str]]:
    """Input, axis and torch's expression, for each axis that is no number."""
    inputs = set(exported.graph_signature.user_inputs)
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in inputs and hasattr(node.meta["val"], "shape"):
            for axis, size in enumerate(node.meta["val"].shape):
                if not isinstance(size, int):
                    yield node.name, axis, str(size)


def _symbols(exported: torch.export.ExportedProgram) -> dict[str, str]:
    """A name for each of torch's symbols, by the first axis that is it alone."""
    named: dict[str, str] = {}
    usual = {0: "batch", 1: "sequence"}
    for name, axis, text in _dynamic_axes(exported):
        if text.isidentifier() and text not in named:
            free = axis in usual and usual[axis] not in named.values()
            named[text] = usual[axis] if free else f"dim_{name}_{axis}"
    for _, _, text in _dynamic_axes(exported):
        for symbol in _SYMBOL.findall(text):
            named.setdefault(symbol, symbol)
    return named


def _check_sums(path: Path, axes: Mapping[str, Mapping[int, str]]) -> None:
    for name, named in axes.items():
        for axis, dim in named.items():
            if not all(term.isidentifier() or term.isdigit() for term in dim_terms(dim)):
                raise UsageError(
                    f"Axis {axis} of input {name!r} of {path} has a size that cannot be declared",
                    expected="a dimension, or a sum of dimensions: past + sequence",
                    found=dim,
                    hint="export the program with that axis fixed, or dynamic by itself",
                )


def _ranges(exported: torch.export.ExportedProgram, symbols: Mapping[str, str]) -> dict[str, Dim]:
    ranges = {}
    for symbol, allowed in exported.range_constraints.items():
        if (name := symbols.get(str(symbol))) is not None:
            least, most = str(allowed.lower), str(allowed.upper)
            ranges[name] = Dim(max(1, int(least)), int(most) if most.isdigit() else None)
    return ranges
