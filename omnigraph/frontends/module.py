"""A Program of anyone's module, from one set of example inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from omnigraph.errors import TraceError, UsageError
from omnigraph.frontends.roles import role_of_name, with_roles
from omnigraph.frontends.training_modes import in_eval_mode
from omnigraph.program import Case, Dim, Program, TensorSpec, dim_terms, evaluate_dim
from omnigraph.tracing.indexed_tables import indexed_rows
from omnigraph.tracing.module_call import flatten_outputs, returned

if TYPE_CHECKING:
    from torch import Tensor, nn

#: What an input may be: a type that both numpy and ONNX have.
_DTYPES = frozenset("bool uint8 int8 int16 int32 int64 float16 float32 float64".split())
#: Floats of two values, 0 and another of at most this, are a mask that is added to scores.
_HIDDEN = -1e4


def program_from_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    name: str = "forward",
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> Program:
    """A program of anyone's module, from one set of example inputs by name.

    The roles of inputs and outputs are read from their names.

    Args:
        module: called with the inputs by name, in eval mode, which it is put into. What it returns
            beside tensors (numbers, caches) is left out, and listed in ``left_out``.
        inputs: example tensors of any sizes; values of other sizes are drawn like them: integers
            from their range, floats with their mean and deviation. A tensor of two values that is
            a mask (booleans, 0 and 1, 0 and a large negative number) is mostly the one that the
            example has more of, with the other as padding. Integers that index a table (token
            ids), of which the example has two values at most, are drawn from all its rows.
        dynamic: for each input, axis to dimension name. By default axis 0 is "batch" and axis 1
            "sequence" where the sizes agree with those of the first input that has both, and other
            axes are fixed. Axis 1 of floats with two axes holds features, and is fixed.

    Raises:
        UsageError: the module, its inputs or ``dynamic`` are not of this form.
        TraceError: the module does not run on its own example, or returns no tensors.
    """
    _check_example(module, inputs)
    axes = _usual_axes(inputs) if dynamic is None else dynamic
    _check_axes(inputs, axes)
    example = {key: tensor.detach().clone() for key, tensor in inputs.items()}
    specs = tuple(
        TensorSpec(
            key,
            _dtype(tensor),
            tuple(axes.get(key, {}).get(i, size) for i, size in enumerate(tensor.shape)),
        )
        for key, tensor in example.items()
    )
    with indexed_rows(in_eval_mode(module)) as rows:
        result = returned(module, example)
    outputs, left_out = _output_names(result, taken=set(example)), tuple(_left_out(result))
    dims = {t: Dim(1) for s in specs for d in s.shape if isinstance(d, str) for t in dim_terms(d)}

    def make_inputs(case: Case) -> dict[str, Tensor]:
        draw = np.random.default_rng(case.seed)
        return {
            spec.name: _resample(
                example[spec.name],
                [evaluate_dim(d, case.sizes) for d in spec.shape],
                # Of two values, too, these are no mask.
                None if role_of_name(spec.name) == "segments" else case.padding,
                draw,
                rows.get(spec.name),
            )
            for spec in specs
        }

    named = {dim: allowed for dim, allowed in dims.items() if not dim.isdigit()}
    program = Program(
        name,
        module,
        specs,
        outputs,
        named,
        make_inputs,
        example=_example_sizes(example, axes),
        left_out=left_out,
        axes_hint=_axes_hint(example, axes) if dynamic is None else "",
    )
    return with_roles(program)


def _check_example(module: object, inputs: Mapping[str, Any]) -> None:
    if not hasattr(module, "named_modules"):
        raise UsageError(
            "There is no module to compile",
            expected="a torch.nn.Module",
            found=type(module).__name__,
            hint="wrap a function in a class with a forward method",
        )
    if not inputs:
        raise UsageError(
            "The module has no example inputs",
            expected="a tensor for each input, by name",
            found="none",
            hint='give {"input_ids": torch.randint(0, 1000, (2, 16))}',
        )
    for key, tensor in inputs.items():
        if not hasattr(tensor, "detach"):
            raise UsageError(
                f"Example input {key!r} is no tensor",
                expected="a torch tensor",
                found=type(tensor).__name__,
                hint="set an option in a module that wraps this one, and not as an input",
            )
        if _dtype(tensor) not in _DTYPES:
            raise UsageError(
                f"Example input {key!r} has a dtype that an artifact cannot take",
                expected=", ".join(sorted(_DTYPES)),
                found=_dtype(tensor),
                hint="give float32, and let the module cast it; --precision chooses the rest",
            )
        if tensor.numel() == 0:
            raise UsageError(
                f"Example input {key!r} is empty",
                expected="at least one element, to draw others like it",
                found=f"shape {tuple(tensor.shape)}",
                hint="give an example of the size that is usual",
            )


def _check_axes(inputs: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> None:
    """Refuse names for axes that are not there, and examples whose sizes contradict the names."""
    sizes: dict[str, int] = {}
    for key, named in axes.items():
        for axis, dim in named.items():
            if key not in inputs or not 0 <= axis < inputs[key].ndim:
                raise UsageError(
                    f"There is no axis {axis} of input {key!r} to be called {dim!r}",
                    expected=", ".join(f"{k} of {t.ndim} axes" for k, t in inputs.items()),
                    found=f"{key}: {dict(named)}",
                    hint='dynamic={"input_ids": {0: "batch", 1: "sequence"}}',
                )
            if len(dim_terms(dim)) == 1:
                sizes.setdefault(dim, inputs[key].shape[axis])
    for key, named in axes.items():
        for axis, dim in named.items():
            known = all(term.isdigit() or term in sizes for term in dim_terms(dim))
            if known and inputs[key].shape[axis] != (size := evaluate_dim(dim, sizes)):
                raise UsageError(
                    f"The example inputs do not agree on the size of dimension {dim!r}",
                    expected=f"{size} on axis {axis} of input {key!r}",
                    found=str(inputs[key].shape[axis]),
                    hint="give them one size, or give the axes names of their own",
                )


def _usual_axes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    first = max(inputs.values(), key=lambda tensor: min(tensor.ndim, 2))
    named = ("batch",) if first.ndim == 2 and first.is_floating_point() else ("batch", "sequence")
    usual = {axis: (dim, first.shape[axis]) for axis, dim in enumerate(named[: first.ndim])}
    return {
        key: {
            axis: dim
            for axis, (dim, size) in usual.items()
            if axis < tensor.ndim and tensor.shape[axis] == size
        }
        for key, tensor in inputs.items()
    }


def _example_sizes(
    example: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]
) -> dict[str, int]:
    """The size of each dimension that is an axis by itself."""
    return {
        dim: example[key].shape[axis]
        for key, named in axes.items()
        for axis, dim in named.items()
        if dim.isidentifier()
    }


def _axes_hint(example: Mapping[str, Tensor], axes: Mapping[str, Mapping[int, str]]) -> str:
    """How to say which axes vary, where that was guessed: as the factory's third value."""
    key, tensor = max(example.items(), key=lambda item: item[1].ndim)
    guess = axes.get(key, {})
    other = {0: "batch"} | ({tensor.ndim - 1: "length"} if tensor.ndim > 1 else {})
    named = {key: other if other != guess else {0: "batch"}}
    return (
        f"axes {sorted(guess)} of {key!r} were taken for {' and '.join(guess.values())}; name "
        f"those that vary: a factory returns (module, inputs, {named}), and "
        f"program_from_module takes dynamic={named}"
    )


def _output_names(result: Any, taken: set[str]) -> tuple[str, ...]:
    names: list[str] = []
    for name in _paths(result):
        while name in taken:  # an input, or a key that spells another's path
            name += "_out"
        taken.add(name)
        names.append(name)
    if not names:
        raise TraceError(
            "The module returns no tensors",
            expected="a tensor, or tensors in a list, tuple or mapping",
            found=type(result).__name__,
            hint="wrap the module in one that returns its tensors",
        )
    assert len(names) == len(flatten_outputs(result))
    return tuple(names)


def _paths(result: Any) -> Iterator[str]:
    """The path to each tensor in what a module returned, in the order of ``flatten_outputs``."""
    return (path for path, value in _leaves(result) if flatten_outputs(value))


def _left_out(result: Any) -> Iterator[str]:
    """The path and the type of each value that is no tensor, but for None."""
    for path, value in _leaves(result):
        if value is not None and not flatten_outputs(value):
            yield f"{path} ({type(value).__name__})"


def _leaves(result: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value in what a module returned, with its path, depth first."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(result, list | tuple):
        for position, value in enumerate(result):
            yield from _leaves(value, f"{prefix or 'output'}.{position}")
    else:
        yield prefix or "output", result


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _resample(
    example: Tensor,
    shape: list[int],
    padding: str | None,
    draw: np.random.Generator,
    rows: int | None,
) -> Tensor:
    """A tensor of another shape with values like the example's, or indices of a table's rows.

    Without ``padding`` it is no mask.
    """
    values = example.numpy()
    if rows is not None and np.unique(values).size <= 2:
        return example.new_tensor(draw.integers(0, rows, shape, values.dtype))
    if padding is not None and (pair := _mask_values(values)) is not None:
        usual, padded = pair
        mask = np.full(shape, usual, values.dtype)
        if padding != "none" and len(shape) == 2 and shape[1] > 1:
            half = shape[1] // 2
            mask[-1, slice(None, half) if padding == "left" else slice(-half, None)] = padded
        return example.new_tensor(mask)
    if not shape and example.is_floating_point():  # a temperature, say: one of another size
        return example * float(draw.uniform(0.5, 1.5))
    if example.is_floating_point():
        spread = float(values.std(dtype=np.float64)) or 1.0
        drawn = draw.standard_normal(shape) * spread + float(values.mean(dtype=np.float64))
        return example.new_tensor(drawn.astype(values.dtype))
    low, high = int(values.min()), int(values.max())
    return example.new_tensor(draw.integers(low, high, shape, values.dtype, endpoint=True))


def _mask_values(values: np.ndarray) -> tuple[Any, Any] | None:
    """The usual value of a mask and the one that hides, or None for what is no mask."""
    found = np.unique(values)
    if found.size > 2 or values.ndim < 2:
        return None
    if values.dtype == bool:
        usual = bool(np.mean(values) >= 0.5)
        return usual, not usual
    if found[-1] == 1 and (found.size == 1 or found[0] == 0):
        return (1, 0) if np.mean(values) >= 0.5 else (0, 1)
    if found.size == 2 and found[-1] == 0 and found[0] <= _HIDDEN:
        return 0, found[0]
    return None
