"""A torch module to a Graph: the only file of the spine that imports torch."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.contract.tolerance import output_scales
from omnigraph.errors import TraceError
from omnigraph.frontends.onnx_module import OnnxModule
from omnigraph.graph import OPSET, Graph, declare_ranges, describe
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.legalize_lowest_mask import LegalizeLowestMask
from omnigraph.program import Case, Program, fit_sizes
from omnigraph.tracing.names import (
    keep_provenance,
    name_dimensions,
    name_tensors,
    output_specs,
    own_path,
)
from omnigraph.tracing.specialization import (
    SpecializationWatch,
    check_open,
    fault_of,
    guilty_dimensions,
    narrowed_error,
    parted_error,
)

__all__ = ["check_trace", "output_specs", "reference_for", "returned", "trace"]

#: Sizes a program is traced at: different, coprime, and none of them 0 or 1, which torch.export
#: would make constants (its "0/1 specialization").
_TRACE_SIZES = (2, 7, 5, 3, 11, 13, 17, 19)
#: Where the source of a model is not.
_NOT_THE_MODEL = (str(Path(torch.__file__).parent), __file__)
#: How the names of ops begin whose outputs are drawn.
_DRAWN = ("Random", "Bernoulli", "Multinomial")


def trace(program: Program) -> Graph:
    """Trace a program to a Graph with every declared dimension still symbolic.

    Args:
        program: what to trace; its module is not changed, and its weights are not copied.

    Returns:
        The Graph, its inputs and outputs named as the program says, its dimensions by name, and
        each node with the module and the source line it came from.

    Raises:
        TraceError: torch cannot trace the module, or the trace fixed a dimension that was declared
            dynamic; the message names the dimension and the module.
    """
    own = isinstance(program.module, OnnxModule)
    graph = program.module.graph(program) if own else _trace_module(program)
    _check_drawn(graph, program)
    declare_ranges(graph, {dim: (sizes.min, sizes.max) for dim, sizes in program.dims.items()})
    return graph


def _trace_module(program: Program) -> Graph:
    _check_weights(program)
    case = example_case(program)
    inputs = program.make_inputs(case)
    _check_inputs(program, inputs)
    entry = _Entry(program)
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in program.inputs
    )
    watch = SpecializationWatch(entry, program)
    try:
        with _quiet(), watch, _written_out(), torch.no_grad():
            exported = torch.export.export(
                entry,
                tuple(inputs[spec.name] for spec in program.inputs),
                dynamic_shapes={"inputs": dynamic},
                strict=False,
            )
    except Exception as error:
        raise _trace_failure(program, watch, error) from error
    if watch.found:
        raise narrowed_error(program, watch)
    _check_state(program, exported)
    _group_heads(exported)
    try:
        with _quiet(), torch.no_grad():
            onnx_program = torch.onnx.export(
                exported, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
    except Exception as error:
        raise TraceError(
            f"Program {program.name!r} was traced, but torch could not convert it to ONNX",
            found=_first_line(error.__cause__ or error),
            hint="replace the operation named here by ones that ONNX has",
        ) from error
    assert onnx_program is not None
    # A copy of the structure, not of the weights: torch's own keeps every parameter of the module
    # alive as a former input, those that the program does not use included.
    graph = onnx_program.model.clone()
    graph.graph.name = program.name
    name_tensors(graph, program)
    name_dimensions(graph, program)
    keep_provenance(graph, program, _NOT_THE_MODEL)
    # A Graph runs in onnxruntime as it stands, from here to the end.
    run_passes(graph, (ExpandAttentionMask(), LegalizeLowestMask(), EmulateBfloat16()))
    check_open(graph, program)
    return graph


def example_case(program: Program) -> Case:
    """The sizes a program is traced at: all different where the ranges allow, and none below 2."""
    wanted = dict(zip(program.dim_names(), _TRACE_SIZES, strict=False))
    sizes = fit_sizes(program, wanted)
    for dim in program.dim_names():
        sizes[dim] = max(sizes[dim], 2)
    return Case("trace", sizes)


def reference_for(program: Program, case: Case) -> Reference:
    """A case's inputs, and the outputs of the torch module itself, in fp32.

    Raises:
        TraceError: the module does not run at these sizes; the message names the dimensions.
    """
    inputs = program.make_inputs(case)
    feeds = {name: _array(tensor).copy() for name, tensor in inputs.items()}
    try:
        outputs = _run(program, inputs)
    except TraceError:
        raise
    except Exception as error:
        guilty = guilty_dimensions(example_case(program), case, partial(_fails, program))
        dims = ", ".join(f"{dim}={case.sizes[dim]}" for dim in guilty or case.sizes)
        raise TraceError(
            f"The module of program {program.name!r} does not run at {dims}, which its dimensions "
            f"allow{_at(error)}",
            expected="a run at " + ", ".join(f"{d}={r}" for d, r in program.dims.items()),
            found=_first_line(error),
            hint="declare the sizes that the module takes, with --dynamic DIM=MIN:MAX",
        ) from error
    named = dict(zip(program.outputs, outputs, strict=True))
    for name, tensor in named.items():
        if tensor.dtype == torch.bfloat16:
            raise TraceError(
                f"Output {name!r} of program {program.name!r} is not computed in fp32",
                expected="float32, or another type that numpy has",
                found="bfloat16",
                hint="switch autocast off in the model, or return tensor.float()",
            )
    return Reference(case, feeds, {name: _array(t).copy() for name, t in named.items()})


def returned(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a module returns for example inputs by name.

    Raises:
        TraceError: it does not run on them.
    """
    try:
        with _written_out(), torch.no_grad():
            return module(**{name: tensor.clone() for name, tensor in inputs.items()})
    except Exception as error:
        raise TraceError(
            f"The module does not run on its own example inputs{_at(error)}",
            found=_first_line(error),
            hint="the factory gives (module, inputs), and module(**inputs) must run",
        ) from error


def _run(program: Program, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    with _written_out(), torch.no_grad():
        return _Entry(program)(*(inputs[spec.name] for spec in program.inputs))


def _fails(program: Program, case: Case) -> bool:
    try:
        _run(program, program.make_inputs(case))
    except Exception:
        return True
    return False


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def check_trace(program: Program, graph: Graph, references: Sequence[Reference]) -> None:
    """Run the traced Graph at other sizes than it was traced at, and compare it with torch.

    Raises:
        TraceError: a size or a number is not that of the module: the trace fixed something that
            depends on a dimension; the message names the dimension and the module.
    """
    runner = GraphRunner(graph)
    scales = output_scales([reference.outputs for reference in references])
    for sample in references:
        if (fault := fault_of(runner, sample, scales)) is not None:
            raise parted_error(
                program,
                runner,
                sample,
                fault,
                traced=example_case(program),
                reference=partial(reference_for, program),
                recorded=_module_outputs(program, sample.case),
            )


def _module_outputs(program: Program, case: Case) -> list[tuple[str, list[np.ndarray]]]:
    """The path and the outputs of each module of a program's model, in the order they finish."""
    recorded: list[tuple[str, list[np.ndarray]]] = []

    def recorder(path: str) -> Callable[..., None]:
        def record(_: nn.Module, __: object, result: Any) -> None:
            recorded.append((path, [_array(t).copy() for t in flatten_outputs(result)]))

        return record

    hooks = [
        module.register_forward_hook(recorder(path))
        for name, module in program.module.named_modules()
        if (path := own_path(name, program.root))
    ]
    try:
        _run(program, program.make_inputs(case))
    finally:
        for hook in hooks:
            hook.remove()
    return recorded


class _Entry(nn.Module):
    """Calls a program's module with inputs by name and gives its outputs as a flat tuple."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.module = program.module
        self.names = [spec.name for spec in program.inputs]
        self.outputs = program.outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.module(**dict(zip(self.names, inputs, strict=True)))
        tensors = flatten_outputs(result)
        if len(tensors) != len(self.outputs):
            raise TraceError(
                "The module's outputs are not those that its program names",
                expected=", ".join(self.outputs),
                found=f"{len(tensors)} tensors",
                hint="name one output for each tensor that the module returns",
            )
        return tensors


def flatten_outputs(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in what a module returned, depth first; what is none is left out."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, Mapping):
        return tuple(tensor for value in result.values() for tensor in flatten_outputs(value))
    if isinstance(result, list | tuple):
        return tuple(tensor for value in result for tensor in flatten_outputs(value))
    return ()


def _trace_failure(program: Program, watch: SpecializationWatch, error: Exception) -> TraceError:
    if isinstance(error, TraceError):
        return error
    if watch.found:
        return narrowed_error(program, watch)
    return TraceError(
        f"Program {program.name!r} could not be traced{_at(error)}",
        found=_first_line(error),
        hint="torch.export must see one graph for all inputs: replace branches on tensor values, "
        ".item(), and in-place edits of inputs; --traceback shows torch's own report",
    )


def _check_weights(program: Program) -> None:
    halves = (torch.float16, torch.bfloat16)
    for name, tensor in (*program.module.named_parameters(), *program.module.named_buffers()):
        if tensor.dtype in halves:
            raise TraceError(
                f"The model of program {program.name!r} has weights of half precision: "
                f"{own_path(name, program.root)!r}",
                expected="float32, which outputs are compared with",
                found=str(tensor.dtype).removeprefix("torch."),
                hint="call model.float(): the precision of an artifact is chosen by --precision",
            )


def _check_inputs(program: Program, inputs: Mapping[str, torch.Tensor]) -> None:
    wanted = [spec.name for spec in program.inputs]
    if sorted(inputs) != sorted(wanted):
        raise TraceError(
            f"The example inputs of program {program.name!r} are not the ones it declares",
            expected=", ".join(wanted),
            found=", ".join(inputs),
            hint="make_inputs gives one tensor for each TensorSpec of the program",
        )


def _check_state(program: Program, exported: torch.export.ExportedProgram) -> None:
    """Refuse a module that writes to its own buffers or weights."""
    signature = exported.graph_signature
    own = {**signature.inputs_to_buffers, **signature.inputs_to_parameters}
    for node in exported.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        if (written := own.get(_viewed(node.args[0]).name)) is not None:
            path = own_path(written.removeprefix("module."), program.root)
            raise TraceError(
                f"The module of program {program.name!r} changes its own tensor {path!r}",
                expected="outputs that depend on the inputs alone",
                found="state that is kept between calls",
                hint="take the state as an input, and return it as an output",
            )


def _group_heads(exported: torch.export.ExportedProgram) -> None:
    """Say of attention whose one head of keys is for all queries that it is grouped.

    torch broadcasts such a head as it stands; its exporter takes fewer heads of keys than of
    queries only where it is told of groups.
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in exported.graph.nodes:
        if node.target is attention:
            query, key, value = (arg.meta["val"] for arg in node.args[:3])
            if query.ndim == 4 and key.shape[1] == value.shape[1] == 1 != query.shape[1]:
                node.kwargs = {**node.kwargs, "enable_gqa": True}


def _viewed(node: Any) -> Any:
    """The node whose memory a chain of views shows."""
    while (schema := getattr(node.target, "_schema", None)) is not None:
        if not schema.returns or schema.returns[0].alias_info is None:
            break
        node = node.args[0]
    return node


def _check_drawn(graph: Graph, program: Program) -> None:
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.op_type.startswith(_DRAWN) or _drops(node):
            raise TraceError(
                f"Program {program.name!r} draws random numbers, at {describe(node)}",
                expected="outputs that depend on the inputs alone",
                found=node.op_type,
                hint="call model.eval(), which stops dropout; or take the noise as an input",
            )


def _at(error: BaseException) -> str:
    """Where an error arose: the innermost frame that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *_NOT_THE_MODEL)):
            return f", at {Path(frame.filename).name}:{frame.lineno}"
    return ""


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


def _drops(node: ir.Node) -> bool:
    """Whether a node is a Dropout that is in training mode."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())


@contextlib.contextmanager
def _written_out() -> Iterator[None]:
    """torch without its fused encoder layers, which give other numbers where a mask hides."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter without its progress lines and its warnings about other packages."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    unread = io.StringIO()  # torch prints its graph before it raises; the error says what matters
    with warnings.catch_warnings(), redirect_stdout(unread), redirect_stderr(unread):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(disabled)
