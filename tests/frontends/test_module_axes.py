"""Which axes of anyone's module are open, and which dimensions they are said in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from traced_modules import WHOLE, Module, compile_, compiled, floats, outputs

from omnigraph.errors import UsageError
from omnigraph.frontends.module import program_from_module
from omnigraph.input_sets import contract_cases
from omnigraph.program import Dim

# -- which axes are open ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"x": (2, 7, 8)}, {"x": ("batch", "sequence", 8)}),
        ({"x": (2, 8)}, {"x": ("batch", 8)}),
        ({"x": (2,)}, {"x": ("batch",)}),
        ({"x": (2, 3, 9, 9)}, {"x": ("batch", "sequence", 9, 9)}),
        (
            {"x": (2, 7, 8), "mask": (2, 7), "pair": (2, 2), "fixed": (8,)},
            {
                "x": ("batch", "sequence", 8),
                "mask": ("batch", "sequence"),
                "pair": ("batch", 2),
                "fixed": (8,),
            },
        ),
        ({"k": (), "x": (2, 7, 8)}, {"k": (), "x": ("batch", "sequence", 8)}),
    ],
)
def test_the_usual_axes(inputs, expected):
    module = Module(lambda m, **given: sum(t.sum() for t in given.values()) + m.layer.bias)
    program = program_from_module(
        module, {name: floats(*s) if s else torch.tensor(1.0) for name, s in inputs.items()}
    )
    assert {spec.name: spec.shape for spec in program.inputs} == expected


def test_axes_by_name_with_a_sum():
    def function(m: Module, x: Tensor, past: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        both = torch.cat([past, x], 1)
        return m.layer(both) * mask.unsqueeze(-1), both

    graph = compiled(
        function,
        {"x": floats(2, 3, 8), "past": floats(2, 4, 8), "mask": torch.ones(2, 7)},
        dynamic={
            "x": {0: "batch", 1: "sequence"},
            "past": {0: "batch", 1: "past"},
            "mask": {0: "batch", 1: "past + sequence"},
        },
    )
    assert outputs(graph)["output.1"] == ("float32", ("batch", "past + sequence", 8))


def test_a_sum_whose_terms_no_input_has_alone():
    graph = compiled(
        lambda m, x, mask: (m.layer(x), mask * 2),
        {"x": floats(2, 3, 8), "mask": floats(2, 7)},
        dynamic={"x": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "past + sequence"}},
    )
    assert outputs(graph)["output.1"] == ("float32", ("batch", "past + sequence"))


def test_no_open_axes():
    graph = compiled(lambda m, x: m.layer(x), {"x": floats()}, dynamic={})
    assert outputs(graph)["output"] == ("float32", (2, 7, 8))


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ({"sequence": Dim(7, 7)}, ("batch", 7, 8)),
        ({"batch": Dim(1, 1)}, (1, "sequence", 8)),
        ({"batch": Dim(1, 1), "sequence": Dim(1, 1)}, (1, 1, 8)),
        ({"batch": Dim(1, 2), "sequence": Dim(1, 2)}, ("batch", "sequence", 8)),
        ({"batch": Dim(3, 4), "sequence": Dim(30, 40)}, ("batch", "sequence", 8)),
    ],
)
def test_dimensions_of_one_size_and_of_few(dims: dict[str, Dim], shape: tuple[int | str, ...]):
    program = program_from_module(Module(lambda m, x: m.layer(x)), {"x": floats()}).with_dims(dims)
    assert outputs(compile_(program))["output"] == ("float32", shape)
    for case in contract_cases(program):
        assert all(case.sizes[dim] in allowed for dim, allowed in dims.items())


def test_sums_of_which_a_term_is_fixed():
    def function(m: Module, x: Tensor, past: Tensor, mask: Tensor) -> Tensor:
        return m.layer(torch.cat([past, x], 1)) * mask.unsqueeze(-1)

    program = program_from_module(
        Module(function),
        {"x": floats(2, 3, 8), "past": floats(2, 4, 8), "mask": torch.ones(2, 7)},
        dynamic={
            "x": {0: "batch", 1: "sequence"},
            "past": {0: "batch", 1: "past"},
            "mask": {0: "batch", 1: "past + sequence"},
        },
    )
    fixed = program.with_dims({"past": Dim(3, 3), "sequence": Dim(1, 9)})
    assert fixed.inputs[2].shape == ("batch", "sequence + 3")
    assert outputs(compile_(fixed))["output"] == ("float32", ("batch", "sequence + 3", 8))


def test_a_range_beyond_what_the_model_takes_is_refused():
    program = program_from_module(Module(lambda m, x: m.layer(x)), {"x": floats()})
    with pytest.raises(UsageError, match=r"dimension 'sequence' in the range 1:[\s\S]*hint: "):
        program.with_dims({"sequence": Dim(1, 9)}).with_dims({"sequence": Dim(1)})


# -- what a module may return ----------------------------------------------------------------------


def test_a_length_that_is_computed_is_said_in_the_dimensions_of_the_program():
    graph = compiled(lambda m, x: m.layer(x)[:, ::2], {"x": floats()})
    batch, length, _ = outputs(graph)["output"][1]
    assert batch == "batch"
    assert str(length).replace(" ", "") == "((sequence+1)//2)"


# -- what a module may take ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 7, 8), (2, 1, 8), (1, 1, 8), (8, 8, 8), (7, 7, 8)])
def test_examples_of_any_size_leave_both_dimensions_open(shape: tuple[int, ...]):
    graph = compiled(lambda m, x: m.layer(x), {"x": floats(*shape)})
    assert outputs(graph)["output"] == WHOLE
