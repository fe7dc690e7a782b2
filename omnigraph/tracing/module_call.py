"""Calls of a program's torch module: inputs by name, and outputs as a flat tuple."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from omnigraph.errors import TraceError
from omnigraph.program import Case, Program
from omnigraph.tracing.names import own_path
from omnigraph.tracing.transformers_forms import forgotten_lengths

#: Folders whose files are not the source of a model: torch's, and this one.
NOT_THE_MODEL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class ModuleCall(nn.Module):
    """Calls a program's module with inputs by name and gives its outputs as a flat tuple."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.module = program.module
        self.names = [spec.name for spec in program.inputs]
        self.outputs = program.outputs

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, for inputs in the order of the program.

        Raises:
            TraceError: the module gives more or fewer tensors than the program names.
        """
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


def run(program: Program, inputs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The outputs of a program's module, for inputs by name."""
    with unfused_layers(), forgotten_lengths(program.module), torch.no_grad():
        return ModuleCall(program)(*(inputs[spec.name] for spec in program.inputs))


def returned(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What a module returns for example inputs by name.

    Raises:
        TraceError: it does not run on them.
    """
    try:
        with unfused_layers(), forgotten_lengths(module), torch.no_grad():
            return module(**{name: tensor.clone() for name, tensor in inputs.items()})
    except Exception as error:
        raise TraceError(
            f"The module does not run on its own example inputs{place_of(error)}",
            found=first_line(error),
            hint="the factory gives (module, inputs), and module(**inputs) must run",
        ) from error


def module_outputs(program: Program, case: Case) -> list[tuple[str, list[np.ndarray]]]:
    """The path and the outputs of each module of a program's model, in the order they finish."""
    recorded: list[tuple[str, list[np.ndarray]]] = []

    def recorder(path: str) -> Callable[..., None]:
        def record(_: nn.Module, __: object, result: Any) -> None:
            recorded.append((path, [array(t).copy() for t in flatten_outputs(result)]))

        return record

    inputs = program.make_inputs(case)  # before the hooks: it may run the model for real pasts
    hooks = [
        module.register_forward_hook(recorder(path))
        for name, module in program.module.named_modules()
        if (path := own_path(name, program.root))
    ]
    try:
        run(program, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return recorded


def array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor's memory as a numpy array."""
    return tensor.detach().cpu().numpy()


@contextlib.contextmanager
def unfused_layers() -> Iterator[None]:
    """torch without its fused encoder layers, which give other numbers where a mask hides."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def place_of(error: BaseException) -> str:
    """Where in the model an error arose: ``, at file.py:12``, or nothing where it is not known."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(("<", *NOT_THE_MODEL)):
            return f", at {Path(frame.filename).name}:{frame.lineno}"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, short enough for one of ours."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")
