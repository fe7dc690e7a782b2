"""A torch module to a Graph, by ``torch.export`` and torch's exporter to ONNX."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch

from omnigraph.errors import TraceError
from omnigraph.graph import OPSET, Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.emulate_bfloat16 import EmulateBfloat16
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.passes.legalize_lowest_mask import LegalizeLowestMask
from omnigraph.program import Program
from omnigraph.tracing.conditions import Condition, keep_conditions
from omnigraph.tracing.module_call import (
    NOT_THE_MODEL,
    ModuleCall,
    first_line,
    place_of,
    unfused_layers,
)
from omnigraph.tracing.names import keep_provenance, name_dimensions, name_tensors, own_path
from omnigraph.tracing.reference import reference_for
from omnigraph.tracing.sizes import example_case
from omnigraph.tracing.specialization import SpecializationWatch, check_open, narrowed_error
from omnigraph.tracing.transformers_forms import traceable_forms


def graph_of_module(program: Program) -> Graph:
    """The Graph of a program's torch module.

    Raises:
        TraceError: torch cannot trace the module or convert it to ONNX, or the trace fixed a
            dimension that was declared dynamic.
    """
    _check_weights(program)
    exported, conditions = _exported(program)
    _check_state(program, exported)
    _group_heads(exported)
    graph = _converted(program, exported)
    graph.graph.name = program.name
    name_tensors(graph, program)
    name_dimensions(graph, program)
    keep_provenance(graph, program, NOT_THE_MODEL)
    # A Graph runs in onnxruntime as it stands, from here to the end.
    run_passes(graph, (ExpandAttentionMask(), LegalizeLowestMask(), EmulateBfloat16()))
    check_open(graph, program)
    keep_conditions(graph, conditions)
    return graph


def _exported(program: Program) -> tuple[torch.export.ExportedProgram, tuple[Condition, ...]]:
    """What ``torch.export`` makes of the module, with every declared dimension dynamic.

    Also gives what it took for granted of the sizes.
    """
    inputs = program.make_inputs(example_case(program))
    _check_inputs(program, inputs)
    call = ModuleCall(program)
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in program.inputs
    )
    watch, forms = SpecializationWatch(call, program), traceable_forms(program.module)
    try:
        with _quiet(), watch, unfused_layers(), forms, torch.no_grad():
            exported = torch.export.export(
                call,
                tuple(inputs[spec.name] for spec in program.inputs),
                dynamic_shapes={"inputs": dynamic},
                strict=False,
            )
    except Exception as error:
        raise _trace_failure(program, watch, error) from error
    if watch.found:
        raise narrowed_error(program, watch)
    return exported, watch.conditions


def _converted(program: Program, exported: torch.export.ExportedProgram) -> Graph:
    """An exported program as torch's exporter converts it to ONNX."""
    try:
        with _quiet(), torch.no_grad():
            onnx_program = torch.onnx.export(
                exported, dynamo=True, opset_version=OPSET, optimize=False, verbose=False
            )
    except Exception as error:
        raise TraceError(
            f"Program {program.name!r} was traced, but torch could not convert it to ONNX",
            found=first_line(error.__cause__ or error),
            hint="replace the operation named here by ones that ONNX has",
        ) from error
    assert onnx_program is not None
    # A copy of the structure, not of the weights: torch's own keeps every parameter of the module
    # alive as a former input, those that the program does not use included.
    return onnx_program.model.clone()


def _trace_failure(program: Program, watch: SpecializationWatch, error: Exception) -> TraceError:
    if isinstance(error, TraceError):
        return error
    try:
        reference_for(program, example_case(program))
    except TraceError as own:  # no fault of the trace: the module does not run at these sizes
        return own
    if watch.found:
        return narrowed_error(program, watch)
    return TraceError(
        f"Program {program.name!r} could not be traced{place_of(error)}",
        found=first_line(error),
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
    declared = [spec.name for spec in program.inputs]
    if sorted(inputs) != sorted(declared):
        raise TraceError(
            f"The example inputs of program {program.name!r} are not the ones it declares",
            expected=", ".join(declared),
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
        if (changed := own.get(_viewed(node.args[0]).name)) is not None:
            path = own_path(changed.removeprefix("module."), program.root)
            raise TraceError(
                f"The module of program {program.name!r} changes its own tensor {path!r}",
                expected="outputs that depend on the inputs alone",
                found="state that is kept between calls",
                hint="take the state as an input, and return it as an output",
            )


def _viewed(node: Any) -> Any:
    """The node whose memory a chain of views shows."""
    while (schema := getattr(node.target, "_schema", None)) is not None:
        if not schema.returns or schema.returns[0].alias_info is None:
            break
        node = node.args[0]
    return node


def _group_heads(exported: torch.export.ExportedProgram) -> None:
    """Mark attention with one head of keys for all queries as grouped.

    torch broadcasts such a head as it stands. Its exporter takes fewer heads of keys than of
    queries only with ``enable_gqa``.
    """
    attention = torch.ops.aten.scaled_dot_product_attention.default
    for node in exported.graph.nodes:
        if node.target is attention:
            query, key, value = (arg.meta["val"] for arg in node.args[:3])
            if query.ndim == 4 and key.shape[1] == value.shape[1] == 1 != query.shape[1]:
                node.kwargs = {**node.kwargs, "enable_gqa": True}


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
