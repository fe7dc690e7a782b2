"""Names in a traced Graph: of tensors, of dimensions, and of the modules nodes came from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omnigraph.errors import TraceError
from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph, inherit_provenance, role_of
from omnigraph.program import Program, TensorSpec, dim_terms

#: The name under which the tracer's wrapper holds a program's module.
_WRAPPER = "module"
#: Stands for the path of the whole model, which is empty.
_WHOLE = "model"


def name_tensors(graph: Graph, program: Program) -> None:
    """Give inputs, outputs and weights the names that the program and the model have for them.

    Raises:
        TraceError: the Graph has more or fewer tensors than the program.
    """
    found = len(graph.graph.inputs), len(graph.graph.outputs)
    named = len(program.inputs), len(program.outputs)
    if found != named:
        raise TraceError(
            f"The trace of program {program.name!r} has other tensors than the program",
            expected=f"{named[0]} inputs and {named[1]} outputs",
            found=f"{found[0]} and {found[1]}",
            hint="a module that changes its own buffers gives more; let it take and return them",
        )
    _free_names(graph, {*(spec.name for spec in program.inputs), *program.outputs})
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        value.name = spec.name
    taken: set[ir.Value] = set(graph.graph.inputs)
    for position, name in enumerate(program.outputs):
        value = graph.graph.outputs[position]
        if value in taken:  # an input passed through, or one value under two names
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.graph.append(copy)
            graph.graph.outputs[position] = value = copy.outputs[0]
        value.name = name
        taken.add(value)
    names = {value.name for value in _values(graph)}
    for name in list(graph.graph.initializers):
        own = _model_path(name, program.root)
        if own and own not in names and own not in graph.graph.initializers:
            graph.graph.initializers[name].name = own


def _free_names(graph: Graph, names: set[str]) -> None:
    """Rename values inside the Graph that have one of the names of inputs and outputs."""
    values = [*_values(graph), *graph.graph.initializers.values()]
    taken = {value.name for value in values} | names
    for value in values:
        if value.name in names:
            fresh = f"{value.name}_inner"
            while fresh in taken:
                fresh += "_"
            taken.add(fresh)
            value.name = fresh


def name_dimensions(graph: Graph, program: Program) -> None:
    """Rename torch's symbols (s15, s8) to the program's dimensions, in every shape."""
    names: dict[str, str] = {}
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        for axis, dim in enumerate(spec.shape):
            found = symbol(value, axis)
            if isinstance(dim, str) and len(dim_terms(dim)) == 1 and found and found.isidentifier():
                names.setdefault(found, dim)
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        for axis, dim in enumerate(spec.shape):  # a sum that no single names stand for
            found = symbol(value, axis)
            if isinstance(dim, str) and found and found.isidentifier():
                names.setdefault(found, dim)
    # A sum that the program spells keeps the program's order of terms.
    spelled = {
        frozenset(dim_terms(d)): d for s in program.inputs for d in s.shape if isinstance(d, str)
    }

    def rename(dim: Any) -> Any:
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return dim
        text = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), str(dim.value))
        return ir.SymbolicDim(spelled.get(frozenset(dim_terms(text)), text))

    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape([rename(dim) for dim in value.shape])


def _values(graph: Graph) -> Iterator[ir.Value]:
    yield from graph.graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        yield from node.outputs


def symbol(value: ir.Value, axis: int) -> str | None:
    """The symbolic dimension on an axis, or None where it is a number."""
    dim = value.shape[axis] if value.shape is not None else None
    return str(dim.value) if isinstance(dim, ir.SymbolicDim) else None


def output_specs(graph: Graph) -> tuple[TensorSpec, ...]:
    """The outputs of a traced Graph: names, dtypes, shapes in the program's dimensions, roles."""
    return tuple(
        TensorSpec(
            value.name or "",
            value.dtype.numpy().name if value.dtype is not None else "float32",
            tuple(
                dim if isinstance(dim, int) else str(dim.value or f"unknown_{axis}")
                for axis, dim in enumerate(value.shape or ())
            ),
            role=role_of(graph, value.name),
        )
        for value in graph.graph.outputs
    )


def keep_provenance(graph: Graph, program: Program, skip: Sequence[str]) -> None:
    """Reduce torch's long metadata to the module path and the source line, for every node.

    Args:
        skip: files and folders that are not the model's source: torch's, and the tracer's.
    """
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        stack = node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
        node.metadata_props.clear()
        node.meta.clear()  # torch's own node, which would keep the exported program
        node.doc_string = None
        if module := _module_path(scopes, program.root):
            node.metadata_props[MODULE_KEY] = module
        if line := _source_line(stack, skip):
            node.metadata_props[SOURCE_KEY] = line
    inherit_provenance(graph)
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        node.metadata_props.setdefault(MODULE_KEY, _WHOLE)
    graph.metadata_props.clear()
    graph.producer_name, graph.producer_version = "omnigraph", None
    for value in (*_values(graph), *graph.graph.initializers.values()):
        value.metadata_props.clear()
        value.meta.clear()


def _module_path(scopes: str, root: str) -> str:
    """The innermost module in torch's list of scopes, without the wrapper's name."""
    names = re.findall(r"'([^']*)'", scopes)[:-1]  # the last one is the operation itself
    path = next((name for name in reversed(names) if name), "")
    return (_model_path(path, root) or _WHOLE) if path.startswith(_WRAPPER) else ""


def _model_path(path: str, root: str) -> str:
    """A path below the tracer's wrapper as the model has it: "module.encoder" is "encoder"."""
    return own_path(path.removeprefix(_WRAPPER).removeprefix("."), root)


def own_path(path: str, root: str) -> str:
    """A path below a program's module as the model itself has it, which stands at ``root``."""
    if root and (path == root or path.startswith(f"{root}.")):
        return path[len(root) + 1 :]
    return path


def _source_line(stack: str, skip: Sequence[str]) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [f for f in frames if not f[0].startswith(("<", *skip))]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""
