"""A torch module to a Graph: the only file of the spine that imports torch."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.contract import Tolerance, deviations
from omnigraph.errors import GraphError, TraceError
from omnigraph.graph_names import (
    keep_provenance,
    name_dimensions,
    name_tensors,
    output_specs,
    symbol,
)
from omnigraph.numbers import Reference
from omnigraph.passes.base import OPSET, Graph, run_passes
from omnigraph.passes.expand_attention_mask import ExpandAttentionMask
from omnigraph.program import Case, Dim, Program, TensorSpec, dim_terms, evaluate_dim, fit_sizes
from omnigraph.verify import GraphRunner, longest_contraction, rounding_depth

__all__ = ["check_trace", "output_specs", "program_from_module", "reference_for", "trace"]

#: Sizes a program is traced at: different, coprime, and none of them 0 or 1, which torch.export
#: would make constants (its "0/1 specialization").
_TRACE_SIZES = (2, 7, 5, 3, 11, 13, 17, 19)


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
    case = example_case(program)
    inputs = program.make_inputs(case)
    _check_inputs(program, inputs)
    entry = _Entry(program)
    dynamic = tuple(
        {i: torch.export.Dim.DYNAMIC for i, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in program.inputs
    )
    watch = _SpecializationWatch(entry, program)
    try:
        with _quiet(), watch, torch.no_grad():
            exported = torch.export.export(
                entry,
                tuple(inputs[spec.name] for spec in program.inputs),
                dynamic_shapes={"inputs": dynamic},
                strict=False,
            )
    except Exception as error:
        raise _trace_failure(program, watch, error) from error
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
    graph = onnx_program.model
    graph.graph.name = program.name
    name_tensors(graph, program)
    name_dimensions(graph, program)
    keep_provenance(graph)
    # A Graph runs in onnxruntime as it stands, from here to the end.
    run_passes(graph, (ExpandAttentionMask(),))
    _check_dynamic(graph, program, watch)
    return graph


def example_case(program: Program) -> Case:
    """The sizes a program is traced at: all different where the ranges allow."""
    return Case(
        "trace", fit_sizes(program, dict(zip(program.dim_names(), _TRACE_SIZES, strict=False)))
    )


def reference_for(program: Program, case: Case) -> Reference:
    """A case's inputs, and the outputs of the torch module itself, in fp32."""
    inputs = program.make_inputs(case)
    with torch.no_grad():
        outputs = _Entry(program)(*(inputs[spec.name] for spec in program.inputs))
    return Reference(
        case,
        {name: tensor.numpy() for name, tensor in inputs.items()},
        {name: t.numpy() for name, t in zip(program.outputs, outputs, strict=True)},
    )


def check_trace(
    program: Program,
    graph: Graph,
    references: Sequence[Reference],
) -> None:
    """Run the traced Graph at other sizes than it was traced at, and compare it with torch.

    Raises:
        TraceError: a size or a number is not that of the module: the trace fixed something that
            depends on a dimension; the message names the dimension.
    """
    runner = GraphRunner(graph)
    for sample in references:
        case = sample.case
        if (fault := _fault(runner, sample)) is not None:
            culprits = _guilty_dimensions(program, runner, case)
            raise TraceError(
                f"The trace of program {program.name!r} is not what the model computes at other "
                f"sizes than it was traced at: dimension {' and '.join(culprits)} was specialized",
                expected=f"the model's outputs at {dict(case.sizes)}",
                found=fault,
                hint="in the module named here, compute with tensor.shape and not with numbers "
                "taken from an example; declare a fixed size with --dynamic DIM=N:N",
            )


def _fault(runner: GraphRunner, sample: Reference) -> str | None:
    expected = sample.outputs
    try:
        found = runner.run(sample.feeds)
    except GraphError as error:
        return str(error.found or error.message)
    graph = runner.graph
    tolerance = Tolerance.for_precision(
        "fp32", depth=rounding_depth(graph), contraction=longest_contraction(graph)
    )
    for name, deviation in deviations(found, expected).items():
        if found[name].shape != expected[name].shape:
            return f"{name} of shape {found[name].shape} where the model has {expected[name].shape}"
        if not deviation.within(tolerance):
            return (
                f"{name} with an error of {deviation.rms:.1e} rms (tolerance {tolerance.rms:.1e})"
            )
    return None


def _guilty_dimensions(program: Program, runner: GraphRunner, case: Case) -> list[str]:
    """The dimensions that alone, at the size they have in ``case``, part the trace from torch."""
    traced = example_case(program)
    guilty = []
    for dim, size in case.sizes.items():
        alone = Case(dim, {**traced.sizes, dim: size}, case.padding, case.seed)
        if _fault(runner, reference_for(program, alone)) is not None:
            guilty.append(repr(dim))
    return guilty or [" or ".join(map(repr, case.sizes))]


def program_from_module(
    module: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    *,
    name: str = "forward",
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """A program of anyone's module, from one set of example inputs by name.

    Args:
        module: called with the inputs by name, in eval mode.
        inputs: example tensors of any sizes; values of other sizes are drawn like them: integers
            from their range, floats with their mean and deviation, 0/1 masks with padding.
        dynamic: for each input, axis to dimension name. By default axis 0 is "batch" and axis 1
            "sequence" where the sizes agree with the first input's, and other axes are fixed.

    Raises:
        TraceError: the module does not run on its own example, or returns no tensors.
    """
    axes = dynamic if dynamic is not None else _usual_axes(inputs)
    specs = tuple(
        TensorSpec(
            key,
            str(tensor.dtype).removeprefix("torch."),
            tuple(axes.get(key, {}).get(i, size) for i, size in enumerate(tensor.shape)),
        )
        for key, tensor in inputs.items()
    )
    module = module.eval()
    try:
        with torch.no_grad():
            result = module(**inputs)
    except Exception as error:
        place = _user_frame(error)
        raise TraceError(
            "The module does not run on its own example inputs"
            + (f", at {place}" if place else ""),
            found=_first_line(error),
            hint="the factory gives (module, inputs), and module(**inputs) must run",
        ) from error
    names = tuple(_output_names(result))
    if not names:
        raise TraceError(
            "The module returns no tensors",
            expected="a tensor, or tensors in a list, tuple or mapping",
            found=type(result).__name__,
            hint="wrap the module in one that returns its tensors",
        )
    dims = {t: Dim(1) for s in specs for d in s.shape if isinstance(d, str) for t in dim_terms(d)}

    def make_inputs(case: Case) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(case.seed)
        return {
            spec.name: _resample(
                inputs[spec.name],
                [evaluate_dim(d, case.sizes) for d in spec.shape],
                case.padding,
                generator,
            )
            for spec in specs
        }

    return Program(name, module, specs, names, dims, make_inputs)


def _usual_axes(inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    first = next(iter(inputs.values()))
    usual = {
        axis: (dim, first.shape[axis])
        for axis, dim in ((0, "batch"), (1, "sequence"))
        if axis < first.ndim
    }
    return {
        key: {
            axis: dim
            for axis, (dim, size) in usual.items()
            if axis < t.ndim and t.shape[axis] == size
        }
        for key, t in inputs.items()
    }


def _output_names(result: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(result, torch.Tensor):
        yield prefix or "output"
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from _output_names(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(result, list | tuple):
        for position, value in enumerate(result):
            yield from _output_names(value, f"{prefix or 'output'}.{position}")


def _resample(
    example: torch.Tensor, shape: list[int], padding: str, generator: torch.Generator
) -> torch.Tensor:
    """A tensor of another shape with values like the example's."""
    if example.dtype.is_floating_point:
        values = torch.randn(shape, generator=generator) * example.float().std(correction=0)
        return (values + example.float().mean()).to(example.dtype)
    low, high = int(example.min()), int(example.max())
    if example.dtype == torch.bool or (low >= 0 and high == 1):
        mask = torch.ones(shape, dtype=example.dtype)
        if padding != "none" and len(shape) == 2 and shape[1] > 1:
            padded = shape[1] // 2
            mask[-1, slice(None, padded) if padding == "left" else slice(-padded, None)] = 0
        return mask
    return torch.randint(low, high + 1, shape, generator=generator, dtype=example.dtype)


class _Entry(nn.Module):
    """Calls a program's module with inputs by name and gives its outputs as a flat tuple."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.module = program.module
        self.names = [spec.name for spec in program.inputs]
        self.outputs = program.outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.module(**dict(zip(self.names, inputs, strict=True)))
        tensors = _flatten_outputs(result)
        if len(tensors) != len(self.outputs):
            raise TraceError(
                "The module's outputs are not those that its program names",
                expected=", ".join(self.outputs),
                found=f"{len(tensors)} tensors",
                hint="name one output for each tensor that the module returns",
            )
        return tensors


def _flatten_outputs(result: Any) -> tuple[torch.Tensor, ...]:
    """The tensors in what a module returned, depth first, as ``_output_names`` names them."""
    if isinstance(result, torch.Tensor):
        return (result,)
    if isinstance(result, Mapping):
        return tuple(tensor for value in result.values() for tensor in _flatten_outputs(value))
    if isinstance(result, list | tuple):
        return tuple(tensor for value in result for tensor in _flatten_outputs(value))
    return ()


class _SpecializationWatch:
    """Notes after which module a dimension that was declared dynamic became a number."""

    def __init__(self, entry: _Entry, program: Program) -> None:
        self._entry, self._program = entry, program
        self._symbols: list[tuple[str, Any]] = []
        self._hooks: list[Any] = []
        self.found: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> None:
        self._hooks.append(self._entry.register_forward_pre_hook(self._begin))
        for name, module in self._entry.module.named_modules():
            label = name or type(module).__name__
            self._hooks.append(module.register_forward_hook(self._make_look(label)))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._symbols = [
            (dim, tensor.shape[axis])
            for spec, tensor in zip(self._program.inputs, inputs, strict=True)
            for axis, dim in enumerate(spec.shape)
            if isinstance(dim, str) and len(dim_terms(dim)) == 1
        ]

    def _make_look(self, label: str):  # type: ignore[no-untyped-def]
        def look(*_: object) -> None:
            for dim, size in self._symbols:
                if dim not in self.found and isinstance(size, torch.SymInt):
                    number = size.node.maybe_as_int()
                    if number is not None:
                        self.found[dim] = (label, number)

        return look


def _trace_failure(program: Program, watch: _SpecializationWatch, error: Exception) -> TraceError:
    if isinstance(error, TraceError):
        return error
    if watch.found:
        return _specialized(program, watch)
    place = _user_frame(error)
    return TraceError(
        f"Program {program.name!r} could not be traced" + (f", at {place}" if place else ""),
        found=_first_line(error),
        hint="torch.export must see one graph for all inputs: replace branches on tensor values, "
        ".item(), and in-place edits of inputs; --traceback shows torch's own report",
    )


def _specialized(program: Program, watch: _SpecializationWatch) -> TraceError:
    dim, (module, number) = next(iter(watch.found.items()))
    return TraceError(
        f"The trace of program {program.name!r} fixed dimension {dim!r}, which was declared "
        f"dynamic, in module {module!r}",
        expected=f"any size in {program.dims.get(dim, Dim())}",
        found=f"the constant {number}",
        hint=f"in that module, do not compare or convert the size; or declare it fixed with "
        f"--dynamic {dim}={number}:{number}",
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


def _check_dynamic(graph: Graph, program: Program, watch: _SpecializationWatch) -> None:
    for value, spec in zip(graph.graph.inputs, program.inputs, strict=True):
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, str) and symbol(value, axis) is None:
                bounds = [program.dims.get(term, Dim()) for term in dim_terms(dim)]
                if all(b.min == b.max for b in bounds):
                    continue  # declared with one size: nothing to keep open
                if watch.found:
                    raise _specialized(program, watch)
                raise TraceError(
                    f"The trace of program {program.name!r} fixed dimension {dim!r} of input "
                    f"{spec.name!r}, which was declared dynamic",
                    expected="a symbolic size",
                    found=str(value.shape),
                    hint="declare it fixed with --dynamic DIM=N:N, or trace with another example",
                )


def _user_frame(error: BaseException) -> str | None:
    """The innermost frame of an error that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


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
