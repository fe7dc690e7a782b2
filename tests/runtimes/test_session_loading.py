"""Sessions are opened, closed, and asked from many threads."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_sessions import VOCABULARY, ids, past, same

import omnigraph
from omnigraph.artifact import Artifact
from omnigraph.errors import DeviceError
from omnigraph.lowering import targets
from omnigraph.runtimes import load, session_class
from omnigraph.runtimes.base import Session

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


def test_a_target_names_the_class_that_runs_its_artifacts():
    for name, target in targets().items():
        kind = session_class(name)
        assert target.session == f"{kind.__module__}:{kind.__name__}"
        assert kind.target == name
