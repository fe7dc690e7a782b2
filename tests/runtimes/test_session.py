"""Session: the same calls, numbers and errors on every target that runs on CPUs."""

from __future__ import annotations

import gc
import json
import threading
import weakref
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import omnigraph
from omnigraph.artifact import MANIFEST, Artifact, seal
from omnigraph.errors import (
    ArtifactError,
    ContractError,
    DeviceError,
    InputError,
    RunError,
    UsageError,
)
from omnigraph.runtimes import load, runtime_names, session_class
from omnigraph.runtimes.base import Session

LAYERS, HEADS, SIZE, VOCABULARY = 2, 4, 16, 256


@pytest.fixture(params=["onnx", "openvino"])
def target(request) -> str:
    return request.param


@pytest.fixture
def path(target: str, tiny_artifacts) -> Path:
    return tiny_artifacts[target]


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    with load(path, threads=1) as opened:
        yield opened


@pytest.fixture
def directory(path: Path, tmp_path: Path) -> Path:
    """The artifact as a directory that a test may change."""
    return unpacked(path, tmp_path / "net")


def unpacked(path: Path, directory: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(directory)
    return directory


def ids(batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (batch, length))


def past(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(length)
    return {
        f"past_key_values.{layer}.{part}": rng.standard_normal((batch, HEADS, length, SIZE)).astype(
            np.float32
        )
        for layer in range(LAYERS)
        for part in ("key", "value")
    }


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


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


def test_what_fails_in_the_runtime_is_an_error_with_its_cause(session: Session, target: str):
    session._programs["forward"] = _failing(session._programs["forward"])
    with pytest.raises(RunError, match=r"Program 'forward' failed in the runtime of") as caught:
        session.run(input_ids=ids(1, 3))
    assert repr(target) in str(caught.value)
    assert "out of memory" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def _failing(loaded):
    from dataclasses import replace

    def execute(_):
        raise RuntimeError("out of memory\nat line 3 of the vendor")

    return replace(loaded, executable=execute)


@pytest.mark.parametrize("program", ["generate", ""])
def test_an_unknown_program_is_refused(session: Session, path: Path, program: str):
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
    assert set(runtime_names()) >= {"onnx", "openvino", "tensorrt"}


def test_files_that_the_runtime_cannot_read_are_an_error_with_its_cause(directory: Path):
    model = Artifact(directory).programs["forward"].files["model"]
    (directory / model).write_bytes(b"not a model")
    reseal(directory)
    with pytest.raises(DeviceError, match=r"could not load program 'forward'") as caught:
        load(directory)
    assert caught.value.__cause__ is not None


# -- opening and closing ---------------------------------------------------------------------------


def test_a_closed_session_does_not_run(path: Path):
    session = load(path, threads=1)
    session.run(input_ids=ids(1, 2))
    session.close()
    session.close()
    for program in ("forward", "decode"):
        with pytest.raises(DeviceError, match=r"closed[\s\S]*hint: load the artifact again"):
            session.run(input_ids=ids(1, 2), program=program)
    assert [spec.name for spec in session.inputs] == ["input_ids", "attention_mask"]


def test_leaving_the_block_closes_it_whatever_happened(path: Path):
    with pytest.raises(ZeroDivisionError), load(path, threads=1) as session:
        _ = 1 / 0
    with pytest.raises(DeviceError, match="closed"):
        session.run(input_ids=ids(1, 2))


def test_a_session_that_is_gone_leaves_nothing(path: Path):
    session = load(path, threads=1)
    session.run(input_ids=ids(1, 2))
    gone = weakref.ref(session._programs["forward"].executable)
    session.close()
    gc.collect()
    assert gone() is None


def test_the_load_is_measured_for_each_program(path: Path):
    with load(path, threads=1) as session:
        assert set(session.load_figures) == {"forward"}
        figures = session.load_figures["forward"]
        assert 0 < figures.seconds < 60
        assert figures.bytes >= 0
        session.run(input_ids=ids(1, 2), program="decode")
        assert set(session.load_figures) == {"forward", "decode"}


def test_another_program_can_be_the_default(path: Path):
    with load(path, threads=1, program="decode") as session:
        assert session.programs == ("decode", "forward")
        assert set(session.load_figures) == {"decode"}
        assert "present_key_values.0.key" in session.run(input_ids=ids(1, 2))


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads_change_no_numbers(path: Path, session: Session, threads: int | None):
    expected = session.run(input_ids=ids(2, 9))
    with load(path, threads=threads) as other:
        assert other.threads == threads
        same(other.run(input_ids=ids(2, 9)), expected)


def test_a_directory_and_a_single_file_give_the_same(session: Session, directory: Path):
    feeds = {"input_ids": ids(2, 3), **past(2, 4)}
    expected = session.run(feeds, program="decode")
    with load(directory, threads=1) as other:
        found = other.run(feeds, program="decode")
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_an_opened_artifact_can_be_loaded(path: Path):
    with load(Artifact(path), threads=1) as session:
        assert session.run(input_ids=ids(1, 2))["logits"].shape == (1, 2, VOCABULARY)
    with omnigraph.load(str(path), check_hashes=False) as session:
        assert session.run(input_ids=ids(1, 2))["logits"].shape == (1, 2, VOCABULARY)


def test_the_class_of_a_target_is_found_by_name(target: str):
    assert session_class(target).target == target


# -- threads ---------------------------------------------------------------------------------------


def test_eight_threads_get_what_one_gets(session: Session):
    def feeds(seed: int) -> tuple[dict[str, np.ndarray], str]:
        batch, length = 1 + seed % 3, 1 + seed % 7
        if seed % 2:
            return {"input_ids": ids(batch, length, seed)}, "forward"
        return {"input_ids": ids(batch, length, seed), **past(batch, seed % 5)}, "decode"

    seeds = range(24)
    expected = {}
    for seed in seeds:
        given, program = feeds(seed)
        expected[seed] = session.run(given, program=program)
    start = threading.Barrier(8)

    def work(worker: int) -> int:
        start.wait()
        for turn in range(40):
            seed = (worker * 7 + turn) % len(seeds)
            given, program = feeds(seed)
            same(session.run(given, program=program), expected[seed])
        return worker

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == list(range(8))


def test_a_program_that_threads_ask_for_at_once_is_loaded_once(path: Path):
    with load(path, threads=1) as session:
        compiled: list[str] = []
        compile_, start = session._compile, threading.Barrier(4)

        def counting(name, entry):
            compiled.append(name)
            return compile_(name, entry)

        session._compile = counting  # type: ignore[method-assign]

        def first_use(_: int) -> tuple[int, ...]:
            start.wait()
            return session.run(input_ids=ids(1, 3), program="decode")["logits"].shape

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(first_use, range(4))) == {(1, 3, VOCABULARY)}
        assert compiled == ["decode"]


# -- the golden pair -------------------------------------------------------------------------------


def reseal(directory: Path, **changes: object) -> None:
    """Make a changed directory an artifact that is whole, as whoever wrote it would have."""
    fields = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).unlink()
    seal(directory, {**fields, **changes})


def change_golden(directory: Path, program: str, output: str, change) -> None:
    """Change one golden output."""
    artifact = Artifact(directory)
    file = artifact.programs[program].golden
    assert file is not None
    arrays = artifact.arrays(file)
    arrays[f"output/{output}"] = change(arrays[f"output/{output}"])
    np.savez(directory / file, **arrays)
    reseal(directory)


def one_wrong(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[changed.size // 2] += 1.0
    return changed


def test_the_golden_pairs_come_out_here(path: Path):
    with load(path, threads=1, verify=True) as session:
        checks = session.verify()
        assert {check.program for check in checks} == {"forward", "decode"}
        names = {(check.program, check.output) for check in checks}
        assert ("decode", "present_key_values.1.value") in names
        assert len(checks) == 2 + 2 * LAYERS
        assert all(check.passed for check in checks)
        assert max(check.deviation.rms for check in checks) > 0  # it is another computation
        assert {check.program for check in session.verify(["decode"])} == {"decode"}


@pytest.mark.parametrize(
    ("program", "output", "change"),
    [
        ("forward", "logits", one_wrong),
        ("decode", "present_key_values.1.key", one_wrong),
        ("decode", "logits", lambda a: np.full_like(a, np.nan)),
        ("forward", "logits", lambda a: a[:, :-1]),
    ],
    ids=["one element", "one element of the state", "not a number", "another shape"],
)
def test_a_golden_output_that_does_not_come_out_is_refused(
    directory: Path, program: str, output: str, change
):
    change_golden(directory, program, output, change)
    with pytest.raises(ContractError) as caught:
        load(directory, threads=1, verify=True)
    message = str(caught.value)
    assert "does not keep its contract on this machine" in message
    assert f"program {program!r}, output {output!r}: error " in message
    assert "\nhint: " in message
    assert caught.value.exit_status == 1
    with load(directory, threads=1) as session:  # only when it is asked for
        failed = [check for check in session.verify() if not check.passed]
        assert [(check.program, check.output) for check in failed] == [(program, output)]


def test_an_artifact_without_golden_pairs_cannot_be_verified(directory: Path):
    programs = json.loads((directory / MANIFEST).read_text())["programs"]
    programs["decode"]["golden"] = None
    reseal(directory, programs=programs)
    with pytest.raises(ContractError, match=r"found none for decode[\s\S]*hint: "):
        load(directory, threads=1, verify=True)


def test_a_changed_artifact_is_not_loaded(directory: Path):
    file = Artifact(directory).programs["forward"].golden
    assert file is not None
    data = bytearray((directory / file).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / file).write_bytes(data)
    with pytest.raises(ArtifactError, match="sha256 differs"):
        load(directory)
