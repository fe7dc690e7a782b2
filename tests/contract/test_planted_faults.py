"""Planted faults: the contract refuses the export, and bisect names the stage and the node.

The whole list, in every precision of every target, is ``python -m benchmarks.planted_faults``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.faults.catalogue import FAULTS, exports, planned  # noqa: E402
from benchmarks.faults.fault import TIMES  # noqa: E402
from benchmarks.faults.planting import graphs_at, honest, try_fault  # noqa: E402
from benchmarks.faults.size import size_of  # noqa: E402
from benchmarks.planted_faults import tables, write_page  # noqa: E402

#: What computations in fp32 may differ by in these models.
_EXACT = 5e-6
BY_NAME = {fault.name: fault for fault in FAULTS}
#: A sample: of each kind and each time, in every kind of precision.
SAMPLE = (
    ("a head lost", "passes", "encoder", "onnx", "int4-weights"),
    ("2% on a row of the query weight", "passes", "encoder", "openvino", "bf16"),
    ("bias of value lost", "artifact", "encoder", "openvino", "int8-weights"),
    ("10% on all queries", "rounding", "encoder", "onnx", "int8"),
    ("scales of a weight shifted by one", "rounding", "encoder", "openvino", "int8"),
    ("tanh for erf in gelu", "lowering", "encoder", "tensorrt", "bf16"),
    ("present key and value exchanged", "artifact", "decoder", "onnx", "fp16"),
    ("residual lost", "artifact", "decoder", "tensorrt", "fp8"),
    ("< for <= in a mask", "trace", "decoder", "onnx", "int8-dynamic"),
    ("rotation lost", "lowering", "decoder", "openvino", "int4-weights"),
    ("zero points of a weight off by one", "artifact", "decoder", "onnx", "int4-weights"),
)


@pytest.mark.parametrize(("name", "time", "model", "target", "precision"), SAMPLE)
def test_a_fault_is_found_and_named(
    name: str, time: str, model: str, target: str, precision: str
) -> None:
    outcome = try_fault(BY_NAME[name], time, model, target, precision)
    assert outcome is not None, "there is no place for it"
    assert outcome.error is not None
    assert outcome.named, (outcome.error, [str(parting) for parting in outcome.partings])


def test_what_is_not_found_is_smaller_than_the_noise() -> None:
    outcome = try_fault(BY_NAME["a norm's epsilon 1e-6"], "artifact", "encoder", "onnx", "fp32")
    assert outcome is not None
    size = size_of(outcome)
    assert outcome.error is None
    assert 0 < size.outputs < outcome.checks[0].tolerance.rms < 5e-6


def test_there_are_more_than_a_hundred_faults_of_different_names() -> None:
    assert len(BY_NAME) == len(FAULTS) >= 100
    assert {time for fault in FAULTS for time in fault.times} == set(TIMES)


def test_the_table_tells_what_was_found_and_how_large_the_rest_is(tmp_path: Path) -> None:
    common = {"model": "encoder", "target": "onnx", "precision": "int8", "time": "passes"}
    size = {"outputs": 1e-5, "longer": 0.0, "noise": 3e-2, "site": 2e-5, "site_noise": 1e-2}
    rows = [
        {**common, "fault": "a head lost", "found": True, "named": True, "size": None},
        {**common, "fault": "epsilon", "found": False, "named": False, "size": size},
    ]
    text = tables(rows, [{"export": "0", "error": None}])
    assert "| onnx int8 | 2 | 1 | 1 | 1 |" in text
    assert (
        "| epsilon | onnx int8, encoder, passes | 1.0e-05 | 3.0e-02 | 2.0e-05 | 1.0e-02 |" in text
    )
    assert "Of 1 varied exports without a fault, 0 were refused." in text
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- planted faults: begin -->\nold\n<!-- planted faults: end -->\nafter"
    )
    write_page(text, page)
    written = page.read_text()
    assert text in written and "old" not in written
    assert written.startswith("before") and written.endswith("after")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), exports())
def test_each_precision_finds_and_names_what_is_larger_than_its_noise(
    target: str, precision: str
) -> None:
    turn = exports().index((target, precision))
    wrong = []
    for number, (fault, time, model) in enumerate(planned(target, precision, turn)):
        if (number + turn) % 8:
            continue
        outcome = try_fault(fault, time, model, target, precision)
        assert outcome is not None
        size = size_of(outcome) if outcome.error is None else None
        seen = outcome.named if size is None else size.outputs < max(size.noise, _EXACT)
        wrong += [] if seen else [(fault.name, time, model, outcome.error, size)]
    assert not wrong


@pytest.mark.slow
def test_every_fault_has_a_place_in_some_model() -> None:
    graphs = [
        graphs_at(model, target, precision)
        for model in ("encoder", "decoder", "encoder-decoder", "alibi", "gpt2")
        for target, precision in (("onnx", "int4-weights"), ("tensorrt", "int8"))
    ]
    for fault in FAULTS:
        places = (fault.place(g[t].clone()) for g in graphs for t in fault.times if t in g)
        assert any(place is not None for place in places), fault.name


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), exports())
def test_no_model_is_refused_without_a_fault(target: str, precision: str) -> None:
    for model in ("encoder", "decoder", "encoder-decoder", "alibi", "gpt2"):
        error, checks = honest(model, target, precision)
        assert error is None and checks
