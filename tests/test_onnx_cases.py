"""The ONNX project's node tests on every target: nothing is computed wrongly, most is taken.

The fast suite runs every eighteenth case, and more of the ops that transformers are made of; the
slow one runs all, and builds engines.
"""

from __future__ import annotations

import pytest
from onnx_cases import NodeCase, node_cases
from onnx_outcomes import TARGETS, Outcome, engine, outcomes, table

#: Ops of which the fast suite runs every third case, in their own form and written out.
CORE = ("Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "Softmax", "MatMul")
STRIDE, CORE_STRIDE = 18, 3
#: How many of all cases each target takes at the least, and of those of Attention, which is 175.
PASSED = {"onnx": 1700, "openvino": 1550, "tensorrt": 1290}
PASSED_ATTENTION = {"onnx": 163, "openvino": 175, "tensorrt": 166}


def sample() -> list[NodeCase]:
    """A part of the cases that is the same each time."""
    core = [case for case in node_cases() if case.op in CORE][::CORE_STRIDE]
    rest = [case for case in node_cases() if case.op not in CORE][::STRIDE]
    return core + rest


def wrong(found: list[Outcome]) -> list[str]:
    return [f"{o.target}: {o.case}: {o.reason}" for o in found if o.kind == "wrong"]


def test_most_of_the_standards_cases_are_there():
    assert len(node_cases()) >= 1746
    assert len({case.op for case in node_cases()}) > 120
    dtypes = {array.dtype.name for case in node_cases() for array in case.feeds.values()}
    assert dtypes >= {"float32", "float16", "float64", "int8", "int32", "int64", "bool", "bfloat16"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_sample_is_passed_or_refused_for_a_reason(target: str):
    found = outcomes(target, sample())
    assert not wrong(found), table(found)
    assert all(o.reason for o in found if o.kind == "refused")
    attention = [o.kind for o in found if o.op == "Attention"]
    assert attention.count("passed") >= 0.9 * len(attention) > 0, table(found)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_passed_or_refused(target: str):
    found = outcomes(target, node_cases())
    assert not wrong(found), table(found)
    passed = [o for o in found if o.kind == "passed"]
    assert len(passed) >= PASSED[target], table(found)
    assert sum(o.op == "Attention" for o in passed) >= PASSED_ATTENTION[target], table(found)


@pytest.mark.slow
def test_tensorrt_builds_engines_of_what_it_takes():
    cases = node_cases()[::40]
    taken = {o.case for o in outcomes("tensorrt", cases) if o.kind == "passed"}
    built = [engine(case) for case in cases if case.name in taken]
    # What is refused here is an input whose numbers are a shape, which no node shows.
    assert not [o for o in built if o.kind == "refused" and "is read as a shape" not in o.reason]
    assert sum(o.kind == "passed" for o in built) >= 15


def test_a_wrong_number_is_seen():
    case = next(c for c in node_cases() if c.name == "test_matmul_2d")
    spoilt = {name: array * 1.001 for name, array in case.outputs.items()}
    other = NodeCase(case.name, case.op, case.model, case.feeds, spoilt)
    (found,) = outcomes("onnx", [other])
    assert found.kind == "wrong" and "off by 1.0e-03" in found.reason
