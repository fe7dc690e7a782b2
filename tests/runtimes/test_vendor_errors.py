"""What a vendor's error says is shown, not where in the vendor's code it was raised."""

from __future__ import annotations

import pytest

from omnigraph.runtimes.vendor_errors import message_of

OPENVINO = """Exception from src/inference/src/cpp/core.cpp:105:
Exception from src/inference/src/dev/plugin.cpp:53:
Check 'pshape.is_static()' failed at src/plugins/intel_cpu/src/graph.cpp:12:
Eltwise node with name 'add' has shapes 3 and 4.

"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(OPENVINO), "Eltwise node with name 'add' has shapes 3 and 4"),
        (
            RuntimeError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions."),
            "Got invalid dimensions",
        ),
        (
            RuntimeError(
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running a "
                "Reshape node. Name:'r' Status Message: /onnxruntime_src/core/reshape_helper.h:84 "
                "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) "
                "size != 0 was false. Input shape:{1,3}, requested shape:{-1,2}\n"
            ),
            "Non-zero status code returned while running a Reshape node. Name:'r' Status Message: "
            "size != 0 was false. Input shape:{1,3}, requested shape:{-1,2}",
        ),
        (
            RuntimeError(
                "Exception from src/infer_request.cpp:224:\n[CPU] Reshape node with name 'r' Check "
                "'a <= 1' failed at src/shape_inference/reshape.cpp:77:\nshapes (1.3) and (-1.2)\n"
            ),
            "[CPU] Reshape node with name 'r' Check 'a <= 1' failed: shapes (1.3) and (-1.2)",
        ),
        (RuntimeError("Exception from src/core.cpp:105: no file"), "no file"),
        (RuntimeError("Exception from src/core.cpp:105:\n"), "RuntimeError, without a message"),
        (StopIteration(), "StopIteration, without a message"),
        (KeyError("x"), "'x'"),
        (ValueError("  \n first\nsecond."), "first second"),
    ],
)
def test_the_message_is_what_the_vendor_says(error: BaseException, message: str):
    assert message_of(error) == message


def test_a_long_message_is_cut():
    assert len(message_of(RuntimeError("word " * 1000))) <= 300
