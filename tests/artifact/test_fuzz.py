"""A sample of ``make fuzz``: damages are refused, noticed, or change no number."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.damages import damaged_bytes, damaged_json, generator
from benchmarks.fuzz import COUNTS, faults, run, sample
from benchmarks.fuzz_cases import KINDS, make_artifacts

#: How many of each kind are tried here.
SAMPLE = {"archive": 100, "manifest": 100, "vendor": 30, "model": 4}
#: Damages that once ended in a traceback, a crash, a hang or a wrong number.
FOUND = {"manifest": [480, 960, 1990, 3160], "model": [12, 168]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    make_artifacts(made)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_damages_is_harmless(kind: str, folder: Path):
    numbers = sample(SAMPLE[kind] / COUNTS[kind])[kind]
    found = {f"{kind}:{n}": outcome for n, outcome in run(kind, numbers, folder)}
    assert len(found) == len(numbers) >= SAMPLE[kind]
    assert not faults(found)
    assert "refused" in found.values()


@pytest.mark.parametrize("kind", FOUND)
def test_damages_that_were_not_harmless_are(kind: str, folder: Path):
    assert not faults({f"{kind}:{n}": outcome for n, outcome in run(kind, FOUND[kind], folder)})


def test_there_are_ten_thousand_damages_and_each_is_always_the_same():
    assert sum(COUNTS.values()) == 10_000
    data, fields = bytes(range(256)), {"a": [1, {"b": "c"}], "d": None}
    for number in range(200):
        twice = [damaged_bytes(data, generator("archive", number)) for _ in range(2)]
        assert twice[0] == twice[1] != data
        assert damaged_json(fields, generator("manifest", number)) == damaged_json(
            fields, generator("manifest", number)
        )


class Died(KINDS["archive"]):  # type: ignore[misc, valid-type]
    """A kind whose third damage ends the process, and whose fifth never ends."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        pass

    def attempt(self, number: int) -> str:
        import os
        import time

        if number == 3:
            os.abort()
        if number == 5:
            time.sleep(1000)
        return 1 / 0 if number == 7 else "same"  # type: ignore[return-value]


def test_a_process_that_dies_or_hangs_is_seen(folder: Path, monkeypatch):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]; from test_fuzz import Died; "
        "from benchmarks import fuzz, fuzz_cases; fuzz_cases.KINDS['archive'] = Died; "
        "fuzz.work('archive', [int(n) for n in sys.stdin.read().split()], None)"
    )
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    monkeypatch.setattr("benchmarks.fuzz.PATIENCE", 15.0)
    monkeypatch.setattr("benchmarks.fuzz.WORK", [sys.executable, "-c", code, *paths])
    found = dict(run("archive", range(1, 9), folder))
    assert found[3].startswith("CRASH") and found[5].startswith("HANG")
    assert found[7].startswith("TRACEBACK ZeroDivisionError")
    assert [found[n] for n in (1, 2, 4, 6, 8)] == ["same"] * 5
    assert len(faults({str(n): outcome for n, outcome in found.items()})) == 3
