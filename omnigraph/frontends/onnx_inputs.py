"""Example values for the inputs of an ONNX file, by what its Graph does with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from omnigraph.graph import Graph
from omnigraph.program import Case, Program, evaluate_dim

#: Ops that pass integers on, perhaps beside a few others.
_HANDS_ON = frozenset(
    "Cast Clip Concat Expand Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze".split()
)


def examples(
    graph: Graph,
    axes: Mapping[str, Mapping[int, str]],
    given: Mapping[str, torch.Tensor],
    sizes: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    """An example of each input: the one that is given, or one drawn at the sizes of dimensions.

    Token ids are drawn from the table that they index, classes from the numbers that they are
    compared with; masks show everything, and other floats are normal.

    Args:
        axes: for each input, axis to dimension name.
    """
    draw = np.random.default_rng(0)
    drawn = {}
    for value in graph.graph.inputs:
        name = value.name or ""
        shape = [
            dim if isinstance(dim, int) else evaluate_dim(axes[name][axis], sizes)
            for axis, dim in enumerate(value.shape or ())
        ]
        drawn[name] = given[name] if name in given else torch.from_numpy(_drawn(value, shape, draw))
    return drawn


def with_known_numbers(program: Program, graph: Graph, given: Mapping[str, Any]) -> Program:
    """The program with inputs that hold the numbers which its Graph looks up or compares.

    A number that is compared with one constant, such as a sample rate, has that value in every
    second set, and half of it in the others: both branches are run then.

    Args:
        given: inputs that have an example, and are drawn like it.
    """
    numbers = {
        value.name or "": known
        for value in graph.graph.inputs
        if value.name not in given and (known := known_numbers(value)) is not None
    }

    branches = {v.name for v in graph.graph.inputs if chooses_a_branch(v)}

    def make_inputs(case: Case) -> dict[str, torch.Tensor]:
        inputs = program.make_inputs(case)
        draw = np.random.default_rng(case.seed)
        for name, known in numbers.items():
            like = inputs[name]
            if name in branches:
                values = np.full(tuple(like.shape), known[case.seed % 2])
            else:
                values = draw.choice(known, tuple(like.shape))
            inputs[name] = like.new_tensor(values)
        return inputs

    return replace(program, make_inputs=make_inputs) if numbers else program


def _drawn(value: ir.Value, shape: Sequence[int], draw: np.random.Generator) -> np.ndarray:
    """Values for an input, by its dtype, its name, and the numbers that the Graph knows."""
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if dtype == np.bool_ or "mask" in (value.name or ""):
        return np.ones(shape, dtype)
    known = known_numbers(value)
    if known is None and dtype.kind == "f":
        return draw.standard_normal(shape).astype(dtype)
    numbers = np.arange(2) if known is None else known
    ids = draw.choice(numbers, shape).astype(dtype)
    ids.reshape(-1)[-1:] = numbers[-1]  # others are drawn up to the largest of the example
    ids.reshape(-1)[:1] = numbers[0]
    return ids


def known_numbers(value: ir.Value) -> np.ndarray | None:
    """The numbers that an input can be, where its Graph looks them up or compares them.

    Returns:
        The row numbers of the smallest table that it indexes; else the constants that it is
        compared with; None where there are neither.
    """
    rows, compared = [], []
    for user, position, reader in _readers(value):
        others = [v for i, v in enumerate(user.inputs) if i != position and v is not None]
        if user.op_type == "Gather" and position == 1:
            rows.append(_size(user.inputs[0], user.attributes.get_int("axis", 0)))
        elif user.op_type == "OneHot" and position == 0:
            depth = ir.convenience.get_const_tensor(user.inputs[1]) if user.inputs[1] else None
            rows.append(int(depth.numpy().reshape(-1)[0]) if depth is not None else None)
        elif user.op_type == "Equal" and others and reader.dtype != ir.DataType.BOOL:
            tensor = ir.convenience.get_const_tensor(others[0])
            compared += tensor.numpy().reshape(-1).tolist() if tensor is not None else []
    if known := [found for found in rows if found]:
        return np.arange(min(known))
    numbers = np.unique(compared)
    if numbers.size > 1:
        return numbers
    if numbers.size == 1 and chooses_a_branch(value):
        only = numbers[0]
        return np.array([only, only // 2 if only > 1 else only + 1])
    return None


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int, ir.Value]]:
    """The nodes that read a value's numbers, the position at which they do, and what they read."""
    seen, waiting = {value}, [value]
    while waiting:
        current = waiting.pop()
        for user, position in current.uses():
            yield user, position, current
            if user.op_type in _HANDS_ON:
                waiting += [output for output in user.outputs if output not in seen]
                seen.update(user.outputs)


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


def chooses_a_branch(value: ir.Value) -> bool:
    """Whether an input is one integer that the Graph compares with a constant."""
    if value.dtype is None or not value.dtype.is_integer():
        return False
    one = all(dim == 1 for dim in value.shape or ())
    return one and any(user.op_type == "Equal" for user, _, _ in _readers(value))
