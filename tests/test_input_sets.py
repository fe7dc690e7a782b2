"""The input sets of the contract: each dimension, whatever its name, at each kind of size."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from omnigraph.errors import UsageError
from omnigraph.input_sets import affordable, contract_cases
from omnigraph.program import Dim, Program, TensorSpec


def program(*shapes: tuple[str, ...], module: nn.Module | None = None, **dims: Dim) -> Program:
    inputs = tuple(TensorSpec(f"x{i}", "float32", shape) for i, shape in enumerate(shapes))
    names = dict.fromkeys(name for shape in shapes for name in shape)
    ranges = {name: dims.get(name, Dim()) for name in names}
    return Program("forward", module, inputs, ("y",), ranges, lambda case: {})


NAMES = ("batch", "length", "frames", "height", "width", "num_choices", "samples", "past")


@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
def test_each_dimension_of_any_name_is_tried_at_each_kind_of_size(names: list[str]):
    made = program(tuple(names))
    cases = contract_cases(made)
    for name in names:
        sizes = [case.sizes[name] for case in cases]
        assert made.dims[name].min in sizes
        assert any(size % 2 for size in sizes)
        assert any(size % 4 == 0 and size for size in sizes)
    for case in cases[1:]:
        for one, other in combinations(names, 2):
            assert case.sizes[one] != case.sizes[other], case


@pytest.mark.parametrize("name", ["sequence", "length", "frames", "samples"])
def test_a_length_is_long_in_one_set_whatever_its_name(name: str):
    longest = max(case.sizes[name] for case in contract_cases(program(("batch", name))))
    assert longest > 50


@pytest.mark.parametrize("least", [4, 10, 37, 400])
def test_a_range_that_begins_higher_is_tried_at_each_kind_of_size(least: int):
    sizes = [c.sizes["samples"] for c in contract_cases(program(("batch", "samples"),
             samples=Dim(least)))]  # fmt: skip
    assert min(sizes) == least
    assert len(set(sizes)) > 3
    assert {size % 2 for size in sizes} == {0, 1}
    assert max(sizes) > 2 * least + 1


limits = st.integers(1, 300)


@given(first=limits, second=limits, least=st.integers(1, 30), room=limits)
def test_all_sizes_are_in_their_ranges(first: int, second: int, least: int, room: int):
    made = program(
        ("a", "b"), ("c",), a=Dim(1, first), b=Dim(0, second), c=Dim(least, least + room)
    )
    for case in contract_cases(made):
        for name, size in case.sizes.items():
            assert size in made.dims[name], (case, name)


def test_a_declared_maximum_is_tried():
    made = program(("batch", "length"), batch=Dim(1, 8), length=Dim(1, 512))
    cases = {case.name: case.sizes for case in contract_cases(made)}
    assert cases["longest"] == {"batch": 1, "length": 512}
    assert cases["longest-batch"] == {"batch": 8, "length": 1}
    small = program(("batch", "length"), batch=Dim(1, 8), length=Dim(1, 40))
    assert contract_cases(small)[-1].sizes == {"batch": 8, "length": 40}


def test_sums_keep_their_bound_at_the_maximum():
    made = program(("batch", "past", "sequence"), past=Dim(0, 99), sequence=Dim(1, 100))
    made = Program(
        made.name, None, made.inputs, made.outputs,
        {**made.dims, "past + sequence": Dim(1, 100)}, made.make_inputs,
    )  # fmt: skip
    cases = {case.name: case.sizes for case in contract_cases(made)}
    assert cases["longest"] == {"batch": 1, "past": 0, "sequence": 100}
    assert cases["longest-past"] == {"batch": 1, "past": 99, "sequence": 1}


def test_what_is_not_affordable_is_left_out():
    endless = program(("batch", "length"), length=Dim(1, 10**6))
    assert [case.name for case in contract_cases(endless)][-1] == "padded-left"
    wide = nn.Linear(8192, 8192, bias=False, device="meta", dtype=torch.float32)
    heavy = program(("batch", "length"), length=Dim(1, 1024), module=wide)
    assert not affordable(heavy, {"batch": 1, "length": 1024})
    assert affordable(heavy, {"batch": 1, "length": 256})
    assert [case.name for case in contract_cases(heavy)][-1] == "padded-left"


def test_not_all_dimensions_are_long_in_one_set():
    for names in (("batch", "height", "width"), ("batch", "num_choices", "sequence")):
        made = program(names)
        long = contract_cases(made)[1]
        assert long.name == "long"
        assert affordable(made, long.sizes)
        assert max(long.sizes.values()) > 50


def test_the_sets_are_the_same_each_time():
    made = program(("batch", "length"), length=Dim(2, 99))
    assert contract_cases(made) == contract_cases(made)
    assert len({case.name for case in contract_cases(made)}) == len(contract_cases(made))


# -- ranges that a person declares -----------------------------------------------------------------


def test_a_default_least_size_may_be_declared_smaller_and_is_tried():
    wider = program(("batch", "past")).with_dims({"past": Dim(0, 60)})
    assert wider.dims["past"] == Dim(0, 60)
    assert wider.declared == {"past"}
    sizes = {case.sizes["past"] for case in contract_cases(wider)}
    assert {0, 60} <= sizes


def test_a_least_size_that_is_known_may_not():
    with pytest.raises(UsageError, match=r"cannot take dimension 'samples' in the range 0:"):
        program(("batch", "samples"), samples=Dim(400)).with_dims({"samples": Dim(0)})


def test_a_set_goes_past_the_largest_numbers_that_positions_are_compared_with():
    made = program(("batch", "sequence"), module=nn.Linear(2, 2))
    usual = contract_cases(made)
    assert contract_cases(made, [3, 40]) == usual
    cases = contract_cases(made, [1, 70, 100, 128])
    assert cases[: len(usual)] == usual
    assert [(c.name, c.sizes["sequence"]) for c in cases[len(usual) :]] == [
        ("past-100", 105),
        ("past-128", 133),
    ]
    assert contract_cases(made, [100_000]) == usual  # not affordable
    one_token = program(
        ("batch", "sequence"), ("past",), module=nn.Linear(2, 2), sequence=Dim(1, 1), past=Dim(0)
    )
    assert contract_cases(one_token, [100])[-1].sizes == {"batch": 1, "sequence": 1, "past": 105}
    short = program(("batch", "sequence"), module=nn.Linear(2, 2), sequence=Dim(1, 64))
    assert contract_cases(short, [100]) == contract_cases(short)
