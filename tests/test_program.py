"""Programs: ranges, sums of dimensions, and the sizes at which numbers are compared."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnigraph.errors import UsageError
from omnigraph.input_sets import contract_cases
from omnigraph.program import (
    Dim,
    Program,
    TensorSpec,
    evaluate_dim,
    fit_sizes,
    mask_of,
)


def program(**dims: Dim) -> Program:
    spelled = {name.replace("_plus_", " + "): dim for name, dim in dims.items()}
    shape = ("batch", "sequence", "past", "past + sequence")
    return Program(
        "decode", None, (TensorSpec("x", "float32", shape),), ("y",), spelled, lambda case: {}
    )


@pytest.mark.parametrize(("low", "high"), [(-1, 4), (5, 4), (0, -1)])
def test_a_range_that_cannot_be_is_refused(low: int, high: int):
    with pytest.raises(UsageError, match=r"empty or negative[\s\S]*hint: "):
        Dim(low, high)


def test_a_range_of_multiples():
    height = Dim(32, 640, 32)
    assert [size in height for size in (32, 48, 64, 640, 672)] == [True, False, True, True, False]
    assert [height.clamp(size) for size in (1, 33, 65, 700)] == [32, 64, 96, 640]
    assert str(height) == "32:640:32"
    assert Dim(1, None, 4).within(Dim(5, 60, 6)) == Dim(5, 60, 12)
    with pytest.raises(UsageError, match="has no size"):
        Dim(33, 63, 32)
    with pytest.raises(UsageError, match="has no size"):
        Dim(1, 2, 0)


def test_the_multiple_of_a_dimension_stays_when_its_ends_are_given():
    image = TensorSpec("x", "float32", ("batch", 3, "height"))
    given = Program("forward", None, (image,), ("y",), {"height": Dim(32, None, 32)}, dict)
    assert given.with_dims({"height": Dim(64, 640)}).dims["height"] == Dim(64, 640, 32)
    assert fit_sizes(given, {"height": 50})["height"] == 64
    with pytest.raises(UsageError, match="has no size"):
        given.with_dims({"height": Dim(50, 50)})


def test_ranges():
    assert 0 in Dim(0)
    assert 10**9 in Dim(1)
    assert 5 not in Dim(1, 4)
    assert [Dim(2, 4).clamp(size) for size in (0, 3, 9)] == [2, 3, 4]
    assert Dim(1).clamp(9) == 9
    assert (str(Dim(1)), str(Dim(2, 4))) == ("1:", "2:4")
    assert Dim(1).within(Dim(2, 9)) == Dim(2, 9)
    assert Dim(3, 12).within(Dim(2, 9)) == Dim(3, 9)
    with pytest.raises(UsageError, match="empty"):
        Dim(1, 3).within(Dim(4, 5))


def test_a_dimension_is_a_number_a_name_or_a_sum():
    sizes = {"past": 3, "sequence": 4}
    assert [evaluate_dim(d, sizes) for d in (7, "past", "past + sequence", "sequence + 2")] == [
        7, 3, 7, 6,
    ]  # fmt: skip
    with pytest.raises(KeyError):
        evaluate_dim("batch", sizes)
    assert program().dim_names() == ("batch", "sequence", "past")


limits = st.integers(1, 40)


@given(sequence=limits, past=limits, both=limits)
def test_sizes_are_in_every_range(sequence: int, past: int, both: int):
    made = program(
        batch=Dim(1, 3),
        sequence=Dim(1, sequence),
        past=Dim(0, past),
        past_plus_sequence=Dim(1, both),
    )
    for sizes in [case.sizes for case in contract_cases(made)] + [fit_sizes(made, {"past": 99})]:
        assert set(sizes) == {"batch", "sequence", "past"}
        for dim, allowed in made.dims.items():
            assert evaluate_dim(dim, sizes) in allowed, (dim, sizes)


def test_sizes_that_fit_are_left_alone():
    made = program(past_plus_sequence=Dim(1, 64))
    wanted = {"batch": 2, "sequence": 30, "past": 34}
    assert fit_sizes(made, wanted) == wanted
    assert fit_sizes(program(batch=Dim(9), other=Dim(1, 2)), {"batch": 2})["batch"] == 9


def test_input_sets_are_short_long_padded_and_batched():
    cases = contract_cases(program(past=Dim(0)))
    assert len({case.name for case in cases}) == len(cases) == 5
    assert len({case.seed for case in cases}) == 5
    assert {case.padding for case in cases} == {"none", "left", "right"}
    assert any(set(case.sizes.values()) == {1, 0} for case in cases)
    for case in cases:
        padded = case.padding != "none"
        assert case.sizes["batch"] > 1 or not padded
        assert not padded or len({*case.sizes.values()}) == 3  # nothing agrees by chance


def test_ranges_follow_when_a_term_is_fixed():
    inputs = (TensorSpec("mask", "int64", ("past + sequence",)),)
    dims = {"past": Dim(0, 9), "sequence": Dim(1, 20), "past + sequence": Dim(1, 20)}
    program = Program("decode", None, inputs, ("output",), dims, lambda case: {})
    assert program.with_dims({"past": Dim(5, 5)}).dims == {
        "sequence": Dim(1, 20),
        "sequence + 5": Dim(1, 20),
    }
    none = program.with_dims({"past": Dim(0, 0), "sequence": Dim(1, 8)})
    assert none.dims == {"sequence": Dim(1, 8)}
    assert none.inputs[0].shape == ("sequence",)
    both = program.with_dims({"past": Dim(2, 2), "sequence": Dim(3, 3)})
    assert both.inputs[0].shape == (5,)
    assert both.dims == {}


def test_two_tensors_of_one_name_are_no_program():
    spec = TensorSpec("x", "float32", ("batch",))
    with pytest.raises(UsageError, match=r"two tensors of one name: .* found x\.\nhint: "):
        Program("forward", None, (spec,), ("x",), {}, lambda case: {})


# Roles --------------------------------------------------------------------------------------------


def test_a_role_is_one_of_those_there_are():
    with pytest.raises(UsageError, match=r"'x' has a role that there is not: expected tokens, "):
        TensorSpec("x", "int64", ("batch",), role="token")
    with pytest.raises(UsageError, match="'y' has a role"):
        Program("p", None, (), ("y",), {}, lambda case: {}, output_roles={"y": "output"})


def test_the_roles_of_a_program_are_those_that_are_known():
    inputs = (TensorSpec("x", "int64", (), role="tokens"), TensorSpec("z", "int64", ()))
    roles = {"y": "logits", "w": ""}
    made = Program("p", None, inputs, ("y", "w"), {}, lambda case: {}, output_roles=roles)
    assert made.roles() == {"x": "tokens", "y": "logits"}


def test_the_mask_of_a_tensor_has_its_positions():
    def mask(name: str, length: str) -> TensorSpec:
        return TensorSpec(name, "int64", ("batch", length), role="mask")

    masks = [mask("encoder", "sequence"), mask("decoder", "past + decoder_sequence")]
    for length, name in (("sequence", "encoder"), ("decoder_sequence", "decoder")):
        found = mask_of(TensorSpec("y", "float32", ("batch", length, 8)), masks)
        assert found is not None and found.name == name
    assert mask_of(TensorSpec("y", "float32", ("rows", "sequence")), masks) is None
    assert mask_of(TensorSpec("y", "float32", ("batch",)), masks) is None
    unknown = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
    assert mask_of(TensorSpec("y", "float32", ("batch", "sequence")), [unknown]) is None


def test_a_role_is_written_and_read():
    spec = TensorSpec("input_ids", "int64", ("batch", "sequence"), role="tokens")
    assert spec.to_dict()["role"] == "tokens"
    assert TensorSpec.from_dict(spec.to_dict()) == spec
    bounded = TensorSpec("input_ids", "int64", ("batch", "sequence"), least=0, greatest=255)
    assert bounded.to_dict()["least"] == 0
    assert bounded.to_dict()["greatest"] == 255
    assert TensorSpec.from_dict(bounded.to_dict()) == bounded


def test_a_spec_without_a_known_role_is_read():
    fields = {"name": "input_ids", "dtype": "int64", "shape": ["batch", "sequence"]}
    assert TensorSpec.from_dict(fields) == TensorSpec("input_ids", "int64", ("batch", "sequence"))
    assert TensorSpec.from_dict(fields).to_dict() == fields
    assert TensorSpec.from_dict({**fields, "role": "of a later version"}).role == ""
