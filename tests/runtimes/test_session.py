"""Session: the same calls, numbers and errors on every target that runs on CPUs."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sessions import HEADS, LAYERS, SIZE, VOCABULARY, ids, past, reseal, same

from omnigraph.artifact import Artifact
from omnigraph.errors import (
    DeviceError,
    InputError,
    RunError,
    UsageError,
)
from omnigraph.runtimes import load, session_class
from omnigraph.runtimes.base import Session

# -- running ---------------------------------------------------------------------------------------


def test_it_says_what_it_takes_and_gives(session: Session, target: str):
    assert session.programs == ("forward", "decode")
    assert [spec.name for spec in session.inputs] == ["input_ids", "attention_mask"]
    assert [spec.shape for spec in session.inputs] == [("batch", "sequence")] * 2
    assert [spec.name for spec in session.outputs] == ["logits"]
    assert session.outputs[0].shape == ("batch", "sequence", VOCABULARY)
    assert len(session.entry("decode").inputs) == 2 + 2 * LAYERS
    assert session.device == "cpu"
    assert session.target == target
    assert target.lower() in repr(session).lower()
    assert "forward, decode" in repr(session)


def test_inputs_by_keyword_and_by_mapping_are_the_same(session: Session):
    tokens = ids(2, 5)
    expected = session.run(input_ids=tokens)
    assert expected["logits"].shape == (2, 5, VOCABULARY)
    assert expected["logits"].dtype == np.float32
    same(session.run({"input_ids": tokens}), expected)
    same(session.run({"input_ids": tokens}, attention_mask=np.ones_like(tokens)), expected)
    same(session.run({}, input_ids=tokens, program="forward"), expected)


def test_an_input_given_both_ways_is_refused(session: Session):
    with pytest.raises(InputError, match=r"'input_ids' is given twice[\s\S]*hint: "):
        session.run({"input_ids": ids(1, 2)}, input_ids=ids(1, 3))


def test_a_missing_past_is_an_empty_one(session: Session):
    tokens = ids(2, 6)
    whole = session.run(input_ids=tokens)["logits"]
    empty = session.run(input_ids=tokens, program="decode")
    np.testing.assert_allclose(empty["logits"], whole, rtol=1e-5, atol=1e-6)
    assert empty["present_key_values.0.key"].shape == (2, HEADS, 6, SIZE)
    same(session.run({"input_ids": tokens, **past(2, 0)}, program="decode"), empty)


def test_decoding_in_steps_gives_what_the_whole_gives(session: Session):
    tokens = ids(2, 7)
    whole = session.run(input_ids=tokens)["logits"]
    state: dict[str, np.ndarray] = {}
    for start, end in ((0, 3), (3, 4), (4, 7)):
        out = session.run({"input_ids": tokens[:, start:end], **state}, program="decode")
        np.testing.assert_allclose(out["logits"], whole[:, start:end], rtol=1e-4, atol=1e-5)
        state = {into: out[of] for into, of in session.entry("decode").state}


def test_a_mask_that_is_left_out_hides_nothing(session: Session):
    feeds = {"input_ids": ids(2, 3), **past(2, 4)}
    expected = session.run({**feeds, "attention_mask": np.ones((2, 7), np.int64)}, program="decode")
    same(session.run(feeds, program="decode"), expected)


def test_padding_changes_nothing_for_the_tokens_beside_it(session: Session):
    tokens = ids(1, 5)
    alone = session.run(input_ids=tokens)["logits"]
    padded = np.concatenate([np.zeros((1, 3), np.int64), tokens], axis=1)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1, 1]])
    found = session.run(input_ids=padded, attention_mask=mask)["logits"][:, 3:]
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "form",
    [
        torch.from_numpy,
        lambda a: torch.from_numpy(a.T.copy()).T,
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
        lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    ],
    ids=["torch", "torch transposed", "fortran", "strided", "reversed", "read-only"],
)
def test_memory_in_any_order_means_the_same(session: Session, form):
    tokens = ids(3, 4)
    expected = session.run(input_ids=tokens)
    same(session.run(input_ids=form(tokens)), expected)


@pytest.mark.parametrize("kind", ["fortran", "read-only", "torch", "float view"])
def test_state_in_any_memory_means_the_same(session: Session, kind: str):
    state = past(2, 3)
    expected = session.run({"input_ids": ids(2, 2), **state}, program="decode")
    forms = {
        "fortran": np.asfortranarray,
        "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        "torch": lambda a: torch.from_numpy(a.copy()),
        "float view": lambda a: np.stack([a, a + 1], axis=-1)[..., 0],
    }
    given = {name: forms[kind](array) for name, array in state.items()}
    for _ in range(3):
        same(session.run({"input_ids": ids(2, 2), **given}, program="decode"), expected)


def test_inputs_are_not_changed_by_a_run(session: Session):
    feeds = {"input_ids": ids(2, 3), **past(2, 4)}
    before = {name: array.copy() for name, array in feeds.items()}
    session.run(feeds, program="decode")
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, before[name])


def test_outputs_stay_what_they_were_after_later_runs(session: Session):
    first = session.run(input_ids=ids(2, 5))
    kept = {name: array.copy() for name, array in first.items()}
    for seed in range(1, 5):
        session.run(input_ids=ids(2, 5, seed))
    session.run(input_ids=ids(3, 9))
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_outputs_outlive_the_session(path: Path):
    with load(path, threads=1) as session:
        found = session.run(input_ids=ids(1, 4))["logits"]
        kept = found.copy()
    del session
    gc.collect()
    np.testing.assert_array_equal(found, kept)
    found[:] = 0  # and is the caller's own, to write to


def test_an_output_can_be_the_next_input(session: Session):
    out = session.run(input_ids=ids(1, 4), program="decode")
    state = {into: out[of] for into, of in session.entry("decode").state}
    kept = {name: array.copy() for name, array in state.items()}
    again = session.run({"input_ids": ids(1, 1), **state}, program="decode")
    same(session.run({"input_ids": ids(1, 1), **kept}, program="decode"), again)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'input_ids' of program 'forward' is missing"),
        ({"input_ids": ids(1, 3), "tokens": ids(1, 3)}, "no input 'tokens'"),
        ({"input_ids": ids(1, 3).astype(np.int32)}, "wrong dtype: expected int64, found int32"),
        ({"input_ids": ids(1, 3)[0]}, "2 axes, found [3]"),
        ({"input_ids": ids(1, 3), "attention_mask": ids(1, 4)}, "'attention_mask'"),
        ({"input_ids": ids(0, 3)}, "dimension 'batch' of this size: expected 1:, found 0"),
        ({"input_ids": "text"}, "'input_ids' is no array"),
        ({"input_ids": np.ma.asarray(ids(1, 3))}, "'input_ids' is a masked array"),
        ({"input_ids": np.array([[1, 256]])}, "range, at [0, 1]: expected 0 to 255, found 256"),
        ({"input_ids": np.array([[-1]])}, "range, at [0, 0]: expected 0 to 255, found -1"),
        ({"input_ids": np.array([[2**40]])}, f"expected 0 to 255, found {2**40}"),
        ({"input_ids": np.array([[2**32 + 1]])}, f"expected 0 to 255, found {2**32 + 1}"),
        ({3: ids(1, 3)}, "has no input 3"),
        ({"input_ids": ids(1, 3), None: ids(1, 3)}, "has no input None"),
        ([ids(1, 3)], "inputs of a run are no mapping"),
        ([], "expected a dict of arrays by the names of the inputs, found list"),
        (ids(1, 3), "found ndarray"),
        ("input_ids", "found str"),
        ((("input_ids", ids(1, 3)),), "found tuple"),
    ],
)
def test_wrong_inputs_are_refused_and_the_session_goes_on(session: Session, feeds, message: str):
    expected = session.run(input_ids=ids(1, 3))
    with pytest.raises(InputError) as caught:
        session.run(feeds)
    assert message in str(caught.value)
    assert "\nhint: " in str(caught.value)
    same(session.run(input_ids=ids(1, 3)), expected)


def test_a_tensor_that_needs_a_gradient_is_refused(session: Session):
    state: dict = past(1, 2)
    state["past_key_values.0.key"] = torch.zeros(1, HEADS, 2, SIZE, requires_grad=True)
    with pytest.raises(InputError, match="needs no gradient"):
        session.run({"input_ids": ids(1, 1), **state}, program="decode")


@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("name", past(1, 1))
def test_a_state_that_is_not_a_number_is_refused(session: Session, name: str, number: float):
    state = past(2, 3)
    state[name][1, 2, 0, 7] = number
    with pytest.raises(InputError) as caught:
        session.run({"input_ids": ids(2, 1), **state}, program="decode")
    assert f"Input {name!r} of program 'decode' has a value outside its range" in str(caught.value)
    assert "at [1, 2, 0, 7]: expected no NaN, and no positive infinity" in str(caught.value)


def test_a_state_in_part_is_refused(session: Session):
    for name in past(1, 1):
        state = {key: array for key, array in past(2, 3).items() if key != name}
        for given in (state, {**state, name: None}):
            with pytest.raises(InputError, match=f"given in part: {name!r} is missing"):
                session.run({"input_ids": ids(2, 1), **given}, program="decode")


def test_masks_mean_what_they_mean_in_torch_or_are_refused(session: Session, target: str):
    """Every number but 0 shows a token. OpenVINO reads the lower 32 bits."""
    tokens = ids(1, 4)
    expected = session.run(input_ids=tokens, attention_mask=np.array([[0, 1, 1, 1]]))
    for number in (2, -1, 256, 2**31 - 1):
        mask = np.array([[0, number, 1, 1]])
        same(session.run(input_ids=tokens, attention_mask=mask), expected)
    wide = {"input_ids": tokens, "attention_mask": np.array([[0, 2**32, 1, 1]])}
    if target == "onnx":
        same(session.run(wide), expected)
    else:
        with pytest.raises(InputError, match=r"at \[0, 1\].*found 4294967296[\s\S]*as int32"):
            session.run(wide)


def test_what_fails_in_the_runtime_is_an_error_with_its_cause(session: Session, target: str):
    session._programs["forward"] = _failing(session._programs["forward"])
    with pytest.raises(RunError, match=r"Program 'forward' failed in the runtime of") as caught:
        session.run(input_ids=ids(1, 3))
    assert repr(target) in str(caught.value)
    assert "on input_ids [1, 3], attention_mask [1, 3]: found out of memory" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def _failing(loaded):
    from dataclasses import replace

    def execute(_):
        raise RuntimeError("out of memory\nat line 3 of the vendor")

    return replace(loaded, executable=execute)


@pytest.mark.parametrize("program", ["generate", "", 3])
def test_an_unknown_program_is_refused(session: Session, path: Path, program: object):
    for call in (
        lambda: session.run(input_ids=ids(1, 2), program=program),
        lambda: session.entry(program),
        lambda: load(path, program=program),
    ):
        with pytest.raises(InputError) as caught:
            call()
        message = str(caught.value)
        assert f"no program {program!r}" in message
        assert "expected forward or decode" in message


@pytest.mark.parametrize("device", ["tpu", "cuda", "", "cpu:7"])
def test_an_unknown_device_is_refused(path: Path, device: str):
    with pytest.raises(DeviceError, match=r"(?s)cannot run on device.*expected auto or.*hint: "):
        load(path, device=device)


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(path: Path, threads: int):
    with pytest.raises(UsageError, match="at least 1"):
        load(path, threads=threads)


def test_an_unknown_target_is_refused(directory: Path):
    reseal(directory, target="abacus")
    with pytest.raises(DeviceError, match=r"(?s)No runtime is installed for target 'abacus'"):
        load(directory)
    assert {session_class(n).target for n in ("onnx", "openvino", "tensorrt")} == {
        "onnx",
        "openvino",
        "tensorrt",
    }


def test_files_that_the_runtime_cannot_read_are_an_error_with_its_cause(directory: Path):
    model = Artifact(directory).programs["forward"].files["model"]
    (directory / model).write_bytes(b"not a model")
    reseal(directory)
    with pytest.raises(DeviceError, match=r"could not load program 'forward'") as caught:
        load(directory)
    assert caught.value.__cause__ is not None
