"""Named inputs become the arrays of a run, or one paragraph that says which is wrong and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.errors import InputError
from omnigraph.program import TensorSpec
from omnigraph.runtimes.input_binder import InputBinder

HEADS, SIZE = 2, 4
PAST = [f"past.{layer}.{part}" for layer in range(3) for part in ("key", "value")]
DECODE = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("mask", "int64", ("batch", "past + sequence"), default=1),
    *(TensorSpec(name, "float32", ("batch", HEADS, "past", SIZE), default=0) for name in PAST),
)
RANGES = {"batch": [1, 8], "sequence": [1, 16], "past": [0, 32], "past + sequence": [1, 40]}


def ids(batch: int = 2, sequence: int = 3) -> np.ndarray:
    return np.arange(batch * sequence, dtype=np.int64).reshape(batch, sequence)


def past(batch: int = 2, length: int = 5) -> dict[str, np.ndarray]:
    shape = (batch, HEADS, length, SIZE)
    return {name: np.full(shape, i, np.float32) for i, name in enumerate(PAST)}


def mask(batch: int = 2, length: int = 8) -> np.ndarray:
    return np.ones((batch, length), np.int64)


def decode(**changed: Any) -> dict[str, Any]:
    """Inputs of a step after a past of 5, some changed; None leaves one out."""
    whole = {"ids": ids(), "mask": mask(), **past(), **changed}
    return {name: value for name, value in whole.items() if value is not None}


@pytest.fixture
def bind() -> Callable[[Mapping[str, Any]], list[np.ndarray]]:
    return InputBinder("decode", DECODE, RANGES, state=PAST).bind


def binder(*specs: TensorSpec, **ranges: list[int | None]) -> InputBinder:
    return InputBinder("forward", specs, ranges)


def refusal(bind: Callable[[Mapping[str, Any]], object], feeds: Mapping[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        bind(feeds)
    message = str(caught.value)
    assert "\nhint: " in message
    assert message.count("\n") == 1
    return message


# -- what fits -------------------------------------------------------------------------------------


def test_arrays_come_in_the_order_of_the_specs_and_are_not_copied(bind):
    feeds = decode()
    backwards = dict(reversed(feeds.items()))
    for given_order in (feeds, backwards):
        bound = bind(given_order)
        assert all(a is feeds[spec.name] for a, spec in zip(bound, DECODE, strict=True))


def test_a_mask_that_is_left_out_is_filled_to_the_length_of_the_sum(bind):
    _, filled, *_ = bind(decode(mask=None))
    assert filled.dtype == np.int64
    assert filled.tolist() == [[1] * 8] * 2


def test_a_past_that_is_left_out_is_empty(bind):
    feeds = {"ids": ids(), "mask": mask(length=3)}
    bound = bind(feeds)
    for filled in bound[2:]:
        assert filled.shape == (2, HEADS, 0, SIZE)
        assert filled.dtype == np.float32


def test_only_what_has_no_default_must_be_given(bind):
    bound = bind({"ids": ids(1, 4)})
    assert [array.shape for array in bound] == [(1, 4), (1, 4)] + [(1, HEADS, 0, SIZE)] * 6


def test_a_state_is_given_whole_or_not_at_all(bind):
    for left_out in (PAST[1:2], PAST[:1], PAST[2:], PAST[:-1]):
        feeds = decode(**dict.fromkeys(left_out))
        for given_feeds in (feeds, {**feeds, left_out[0]: None}):
            message = refusal(bind, given_feeds)
            assert f"given in part: {left_out[0]!r} is missing: expected all of its 6" in message
            assert f"found {6 - len(left_out)}: past." in message
    assert len(bind(decode())) == len(DECODE)
    assert bind({"ids": ids()})[3].shape == (2, HEADS, 0, SIZE)
    assert bind({"ids": ids(), **dict.fromkeys(PAST)})[3].shape == (2, HEADS, 0, SIZE)


def test_a_state_that_must_be_given_is_no_part_of_one_that_may_be_left_out():
    """As where decoding starts: with the encoder's keys, and none of the decoder's own."""
    crossed = TensorSpec("cross.key", "float32", ("batch", HEADS, "length", SIZE))
    bind = InputBinder("decode", (*DECODE, crossed), RANGES, state=[*PAST, "cross.key"]).bind
    keys = np.ones((2, HEADS, 4, SIZE), np.float32)
    assert bind({"ids": ids(), "cross.key": keys})[2].shape == (2, HEADS, 0, SIZE)
    assert "'cross.key' of program 'decode' is missing" in refusal(bind, decode())
    assert "given in part" in refusal(bind, {**decode(**{PAST[1]: None}), "cross.key": keys})


def test_of_inputs_that_are_no_state_some_may_be_left_out():
    bound = InputBinder("decode", DECODE, RANGES).bind(decode(**{PAST[1]: None}))
    assert bound[3].shape == (2, HEADS, 5, SIZE)
    assert not bound[3].any()


def test_none_is_an_input_that_is_left_out(bind):
    feeds = {**decode(), "mask": None}
    bind(decode())  # the same names, given before
    assert bind(feeds)[1].shape == (2, 8)
    assert "'ids' of program 'decode' is missing" in refusal(bind, {**decode(), "ids": None})


def test_defaults_do_not_leak_from_one_run_into_the_next(bind):
    first = bind({"ids": ids()})
    first[1][:] = 7
    assert bind({"ids": ids()})[1].tolist() == [[1] * 3] * 2


def test_a_size_that_is_no_multiple_is_refused():
    specs = (TensorSpec("ids", "int64", ("batch", "sequence")),)
    images = InputBinder("forward", specs, {"batch": [1, None], "sequence": [4, 16, 4]})
    assert len(images.bind({"ids": ids(2, 8)})) == 1
    message = refusal(images.bind, {"ids": ids(2, 6)})
    assert "dimension 'sequence' of this size: expected 4:16:4, found 6" in message


def test_a_name_that_only_a_sum_holds_is_what_the_sum_leaves():
    specs = (
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("mask", "int64", ("batch", "past + sequence")),
        TensorSpec("bias", "float32", ("past",), default=0.5),
    )
    # "past" stands alone in an input that is left out: then the past is empty, and the mask short.
    message = refusal(binder(*specs, past=[0, 9]).bind, {"ids": ids(), "mask": mask(length=5)})
    assert "'mask'" in message
    assert "3 on axis 1 ('past + sequence'), found [2, 5]" in message
    alone = binder(*specs[:2], past=[0, 9])
    assert len(alone.bind({"ids": ids(), "mask": mask(length=5)})) == 2
    assert "cannot take dimension 'past'" in refusal(
        alone.bind, {"ids": ids(), "mask": mask(length=13)}
    )
    assert "at least 3 on axis 1" in refusal(alone.bind, {"ids": ids(), "mask": mask(length=2)})


def test_a_sum_with_a_number_has_that_number_added():
    specs = (
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("mask", "int64", ("batch", "sequence + 4"), default=1),
    )
    bind = binder(*specs, batch=[1, None], sequence=[1, None]).bind
    assert bind({"ids": ids(2, 3)})[1].shape == (2, 7)
    bind({"ids": ids(2, 3), "mask": mask(2, 7)})
    assert "7 on axis 1 ('sequence + 4'), found [2, 8]" in refusal(
        bind, {"ids": ids(2, 3), "mask": mask(2, 8)}
    )


def test_a_sum_that_no_input_has_may_have_a_limit():
    specs = (TensorSpec("ids", "int64", ("length",)), TensorSpec("old", "int64", ("past",)))
    ranges = {"length": [1, 40], "past": [0, 40], "length + past": [1, 40]}
    bind = InputBinder("forward", specs, ranges).bind
    bind({"ids": np.zeros(20, np.int64), "old": np.zeros(20, np.int64)})
    with pytest.raises(InputError, match=r"dimension 'length \+ past'[\s\S]*1:40[\s\S]*41"):
        bind({"ids": np.zeros(21, np.int64), "old": np.zeros(20, np.int64)})


def test_inputs_without_a_range_or_without_axes():
    bind = binder(TensorSpec("scale", "float32", ()), TensorSpec("x", "float32", ("n",))).bind
    scale, x = bind({"scale": np.float32(2), "x": np.zeros(0, np.float32)})
    assert scale.shape == ()
    assert scale == 2
    assert x.size == 0
    assert InputBinder("nothing", (), {}).bind({}) == []


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 8),
    sequence=st.integers(1, 16),
    length=st.integers(0, 24),
    left_out=st.sets(st.sampled_from(["mask", *PAST])),
    order=st.randoms(use_true_random=False),
)
def test_every_consistent_set_of_inputs_is_taken(batch, sequence, length, left_out, order):
    if left_out.issuperset(PAST):
        length = 0
    feeds = {
        "ids": ids(batch, sequence),
        "mask": mask(batch, length + sequence),
        **past(batch, length),
    }
    names = [name for name in feeds if name not in left_out]
    order.shuffle(names)
    bound = InputBinder("decode", DECODE, RANGES).bind({name: feeds[name] for name in names})
    for array, spec in zip(bound, DECODE, strict=True):
        assert array.shape == feeds[spec.name].shape
        assert array.dtype == spec.dtype
        if spec.name not in left_out:
            assert array is feeds[spec.name]


# -- what does not fit -----------------------------------------------------------------------------

REFUSED = {
    "a name it does not have": (
        {"tokens": ids()},
        "has no input 'tokens': expected ids, mask, past.0.key, past.0.value",
    ),
    "an input missing": ({"ids": None}, "'ids' of program 'decode' is missing: expected int64 [ba"),
    "another dtype": ({"ids": ids().astype(np.int32)}, "wrong dtype: expected int64, found int32"),
    "floats for integers": ({"mask": mask().astype(float)}, "expected int64, found float64"),
    "one dtype wrong of many alike": (
        {PAST[3]: past()[PAST[3]].astype(np.float16)},
        "'past.1.value' of program 'decode' has the wrong dtype: expected float32, found float16",
    ),
    "big-endian numbers": ({"ids": ids().astype(">i8")}, "expected int64, found >i8"),
    "strings": ({"ids": np.array([["a"]])}, "expected int64, found <U1"),
    "objects": ({"ids": np.array([[None]])}, "expected int64, found object"),
    "too few axes": ({"ids": ids()[0]}, "[batch, sequence]: 2 axes, found [3]"),
    "too many axes": ({"ids": ids()[None]}, "[batch, sequence]: 2 axes, found [1, 2, 3]"),
    "no axes": ({"ids": np.int64(3)}, "2 axes, found []"),
    "another batch": ({"mask": mask(batch=3)}, "2 on axis 0 ('batch', set by another input)"),
    "another number of heads": (
        {name: np.zeros((2, 3, 5, SIZE), np.float32) for name in PAST},
        "'past.0.key' of program 'decode' has the wrong shape: expected [batch, 2, past, 4]: "
        "2 on axis 1, found [2, 3, 5, 4]",
    ),
    "one tensor of the past that is longer": (
        {PAST[4]: np.zeros((2, HEADS, 6, SIZE), np.float32)},
        "'past.2.key' of program 'decode' has the wrong shape: expected [batch, 2, past, 4]: "
        "[2, 2, 5, 4], as 'past.0.key' has, found [2, 2, 6, 4]",
    ),
    "a mask that is too short": (
        {"mask": mask(length=7)},
        "expected [batch, past + sequence]: 8 on axis 1 ('past + sequence'), found [2, 7]",
    ),
    "a batch that is too large": (
        {"ids": ids(9, 3), "mask": None, **past(9)},
        "cannot take dimension 'batch' of this size: expected 1:8, found 9",
    ),
    "a batch of nothing": (
        {"ids": ids(0, 3), "mask": None, **past(0)},
        "dimension 'batch' of this size: expected 1:8, found 0",
    ),
    "no tokens": (
        {"ids": ids(2, 0), "mask": None},
        "dimension 'sequence' of this size: expected 1:16, found 0",
    ),
    "too long together": (
        {"ids": ids(2, 16), "mask": None, **past(2, 25)},
        "dimension 'past + sequence' of this size: expected 1:40, found 41",
    ),
    "a list": (
        {"ids": [[1, 2]]},
        "'ids' is no array: expected a numpy array, or a tensor that has",
    ),
    "a number": ({"ids": 3}, "'ids' is no array"),
    "text": ({"ids": "12"}, "'ids' is no array"),
    "a masked array": (
        {"ids": np.ma.masked_equal(ids(), 2)},
        "'ids' is a masked array: expected an array whose every element has a value, "
        "found 1 masked of 6",
    ),
    "a masked array with nothing masked": ({"ids": np.ma.asarray(ids())}, "found 0 masked of 6"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, bind):
    changed, message = REFUSED[case]
    assert message in refusal(bind, decode(**changed))
    assert len(bind(decode())) == len(DECODE)  # what is right is still taken
    assert message in refusal(bind, decode(**changed))  # and what is wrong is still refused


@pytest.mark.parametrize("name", [7, None, b"ids", ("ids",)])
def test_a_name_that_is_no_text_is_refused(bind, name):
    for feeds in ({name: ids()}, {**decode(), name: None}, {name: ids(), **decode()}):
        assert f"has no input {name!r}: expected ids, mask" in refusal(bind, feeds)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([spec.name for spec in DECODE]),
    shape=st.lists(st.integers(0, 9), max_size=5).map(tuple),
)
def test_no_wrong_shape_is_taken(name, shape):
    feeds = decode()
    if feeds[name].shape == shape:
        return
    feeds[name] = np.zeros(shape, feeds[name].dtype)
    assert "hint: " in refusal(InputBinder("decode", DECODE, RANGES).bind, feeds)


# -- tensors of others -----------------------------------------------------------------------------


def test_torch_tensors_are_taken_through_dlpack_without_a_copy(bind):
    tensor = torch.arange(6).reshape(2, 3)
    bound = bind(decode(ids=tensor))
    assert bound[0].ctypes.data == tensor.data_ptr()
    assert bound[0].tolist() == tensor.tolist()


def test_a_transposed_torch_tensor_keeps_its_meaning(bind):
    tensor = torch.arange(6).reshape(3, 2).T
    assert bind(decode(ids=tensor))[0].tolist() == tensor.tolist()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, HEADS, 5, SIZE, requires_grad=True),
        torch.zeros(2, HEADS, 5, SIZE, dtype=torch.bfloat16),
        torch.zeros(2, HEADS, 5, SIZE, device="meta"),
    ],
    ids=["needs a gradient", "no numpy dtype", "no memory"],
)
def test_a_tensor_that_numpy_cannot_have_is_refused(bind, tensor):
    message = refusal(bind, decode(**{PAST[0]: tensor}))
    assert "'past.0.key' could not be taken through DLPack" in message
    assert "needs no gradient" in message


def test_a_tensor_whose_own_library_fails_is_refused(bind):
    class Broken:
        def __dlpack__(self, **_):
            raise StopIteration

        def __dlpack_device__(self):
            return (1, 0)

    message = refusal(bind, decode(ids=Broken()))
    assert "'ids' could not be taken through DLPack: found StopIteration, without a me" in message


def test_a_torch_tensor_of_another_dtype_is_refused(bind):
    message = refusal(bind, decode(ids=torch.zeros(2, 3, dtype=torch.int32)))
    assert "expected int64, found int32" in message


def test_subclasses_of_arrays_and_views_are_taken(bind):
    feeds = decode()
    strided = np.arange(12, dtype=np.int64).reshape(2, 6)[:, ::2]
    frozen = ids()
    frozen.flags.writeable = False
    matrix = ids().view(np.matrix)
    for tokens in (strided, frozen, matrix):
        bound = bind({**feeds, "ids": tokens})
        assert type(bound[0]) is np.ndarray
        assert bound[0].tolist() == tokens.tolist()


def test_plans_do_not_pile_up():
    specs = [TensorSpec(f"x{i}", "float32", ("n",), default=0) for i in range(9)]
    bind = InputBinder("forward", specs, {"n": [1, None]})
    one = np.zeros(2, np.float32)
    for chosen in range(1, 2**9):
        bound = bind.bind({s.name: one for i, s in enumerate(specs) if chosen >> i & 1})
        assert [array.shape for array in bound] == [(2,)] * 9
    assert len(bind._plans) <= 64
