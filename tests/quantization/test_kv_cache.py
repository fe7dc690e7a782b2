"""Key/value caches in eight bits: from call to call, on every target, and within the contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import omnigraph
from omnigraph.contract.graph_check import GraphRunner, check_graph
from omnigraph.errors import UsageError
from omnigraph.frontends.resolve import resolve
from omnigraph.graph import Graph
from omnigraph.passes.base import run_passes
from omnigraph.passes.quantize_caches import QuantizeCaches
from omnigraph.program import Case
from omnigraph.testing import graph_from_text
from omnigraph.tracing.trace import reference_for

TINY = {"config": "tiny", "settings": {"kind": "decoder", "positions": "alibi"}}
RNG = np.random.default_rng(0)
SCALES = {"present": np.array([0.01, 0.5], np.float32)}
STATE = {"present": "past"}


def graph() -> Graph:
    return graph_from_text(
        """g (float[B,2,P,4] past, float[B,2,T,4] key) => (float[B,2,S,4] present, float[B,2,S,4] y)
        { present = Concat<axis=2>(past, key)  y = Neg(present) }"""
    )


def test_codes_go_in_and_come_out_as_they_were():
    changed = graph()
    run_passes(changed, [QuantizeCaches(STATE, SCALES)])
    check_graph(changed, "test")
    codes = RNG.integers(-128, 128, (1, 2, 5, 4)).astype(np.int8)
    key = RNG.normal(0, 1, (1, 2, 3, 4)).astype(np.float32)
    found = GraphRunner(changed).run({"past": codes, "key": key})
    by_head = SCALES["present"].reshape(2, 1, 1)
    assert found["present"].dtype == np.int8
    np.testing.assert_array_equal(found["present"][:, :, :5], codes)
    rounded = np.clip(np.rint(key / by_head), -128, 127)
    np.testing.assert_array_equal(found["present"][:, :, 5:], rounded)
    # What is computed of them in this call is not rounded, but for the past.
    np.testing.assert_allclose(found["y"][:, :, :5], -codes.astype(np.float32) * by_head, rtol=1e-6)
    np.testing.assert_array_equal(found["y"][:, :, 5:], -key)


def test_a_second_run_and_states_that_are_left():
    changed = graph()
    run_passes(changed, [QuantizeCaches(STATE, SCALES)])
    (again,) = run_passes(changed, [QuantizeCaches(STATE, SCALES)])
    assert not again.modified
    for state, scales in (({}, SCALES), (STATE, {}), ({"present": "other"}, SCALES)):
        left = graph()
        (record,) = run_passes(left, [QuantizeCaches(state, scales)])
        assert not record.modified
        assert left.graph.outputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(
    ("precision", "target"), [("fp32", "onnx"), ("int8", "onnx"), ("int8", "openvino")]
)
def test_token_by_token_it_says_what_the_model_says_at_once(
    tmp_path: Path, target: str, precision: str
):
    out = tmp_path / "net.omni"
    (report,) = omnigraph.export(
        "omninet", target, precision=precision, kv_cache="int8", out=out, **TINY
    )
    program = resolve("omninet", **TINY).programs[0]
    case = Case("all", {"batch": 2, "sequence": 12}, seed=3)
    reference = reference_for(program, case)
    ids, expected = reference.feeds["input_ids"], reference.outputs["logits"]
    with omnigraph.load(out, verify=True) as session:
        entry = session.entry("decode")
        assert {s.dtype for s in entry.inputs if s.name.startswith("past_key")} == {"int8"}
        state: dict[str, np.ndarray] = {}
        logits = []
        for position in range(ids.shape[1]):
            given = {"input_ids": ids[:, position : position + 1], **state}
            outputs = session.run(given, program="decode")
            logits.append(outputs["logits"])
            state = {taken: outputs[made] for taken, made in entry.state}
    assert all(a.dtype == np.int8 and a.shape[2] == 12 for a in state.values())
    found = np.concatenate(logits, axis=1)
    error = np.sqrt(np.mean(np.square(found - expected)) / np.mean(np.square(expected)))
    (bound,) = {c.tolerance.rms for c in report.checks if c.program == "decode"}
    assert 0 < error < bound


def test_what_only_the_program_with_a_past_multiplies_is_calibrated(tmp_path: Path):
    """The weights of the other program have other names, so that both are observed."""
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        precision="int8",
        programs=["decode"],
        kv_cache="int8",
        out=tmp_path / "a",
        **TINY,
    )
    products = [row for row in report.layers["decode"] if row.op == "MatMul"]
    assert {row.activations for row in products} == {"uint8"}


def test_programs_without_a_past_and_types_that_caches_cannot_have(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be kept in 'int3': expected int8"):
        omnigraph.export("omninet", "onnx", kv_cache="int3", **TINY)
    (report,) = omnigraph.export(
        "omninet",
        "onnx",
        config="tiny",
        settings={"kind": "encoder"},
        kv_cache="int8",
        out=tmp_path / "a",
    )
    assert report.deviation.rms < 1e-5
