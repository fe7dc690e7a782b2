"""The ONNX project's node tests on every target: nothing is computed wrongly, most is taken.

The fast suite runs every eighth case and every case of the ops that matter most; the slow one, all.
"""

from __future__ import annotations

from collections import Counter

import pytest
from onnx_cases import TARGETS, NodeCase, Outcome, node_cases, outcomes, table

#: All cases of these are in the fast suite.
CORE = ("Attention", "RotaryEmbedding", "RMSNormalization", "TensorScatter", "Softmax", "MatMul")
STRIDE = 8

#: How many of all cases each target takes, at the least, when this was written.
PASSED = {"onnx": 1700, "openvino": 1500, "tensorrt": 1250}
#: The same for ops that transformers are made of: cases in both forms, and how many pass.
PASSED_OF = {
    "Attention": {"onnx": 160, "openvino": 140, "tensorrt": 120},
}


def sample() -> list[NodeCase]:
    cases = node_cases()
    return [c for i, c in enumerate(cases) if i % STRIDE == 0 or c.op in CORE]


def wrong(found: list[Outcome]) -> list[str]:
    return [f"{o.target}: {o.case}: {o.reason}" for o in found if o.kind == "wrong"]


def test_most_of_the_standards_cases_are_there():
    assert len(node_cases()) > 1700
    assert len({case.op for case in node_cases()}) > 120
    narrow = [c for c in node_cases() if "float16" in {a.dtype.name for a in c.feeds.values()}]
    assert len(narrow) > 40


@pytest.mark.parametrize("target", TARGETS)
def test_a_sample_is_passed_or_refused(target: str):
    found = outcomes(target, sample())
    assert not wrong(found), table(found)
    assert all(o.reason for o in found if o.kind == "refused")
    passed = Counter(o.op for o in found if o.kind == "passed")
    for op, least in PASSED_OF.items():
        assert passed[op] >= least[target], table([o for o in found if o.op == op])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_passed_or_refused(target: str):
    found = outcomes(target, node_cases())
    assert not wrong(found), table(found)
    assert sum(o.kind == "passed" for o in found) >= PASSED[target]


def test_a_wrong_number_is_seen():
    case = next(c for c in node_cases() if c.name == "test_matmul_2d")
    spoilt = {name: array * 1.001 for name, array in case.outputs.items()}
    other = NodeCase(case.name, case.op, case.model, case.feeds, spoilt)
    (found,) = outcomes("onnx", [other])
    assert found.kind == "wrong" and "off by 1.0e-03" in found.reason
