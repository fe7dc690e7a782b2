"""Samples of token ids, and a model of them whose loss is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omnigraph.program import TensorSpec
from omnigraph.quantization.evaluation import Evaluation, default_metrics, evaluation_of
from omnigraph.quantization.metrics.metric import Example

TINY = {
    "config": "tiny",
    "settings": {"kind": "decoder", "positions": "rotary"},
    "programs": ["forward"],
}
CPU = ("onnx", "openvino")
SEQUENCE = ("batch", "sequence")
INPUTS = (
    TensorSpec("input_ids", "int64", SEQUENCE, role="tokens"),
    TensorSpec("attention_mask", "int64", SEQUENCE, 1, role="mask"),
)
LOGITS = TensorSpec("logits", "float32", (*SEQUENCE, 9), role="logits")
TOKENS = np.random.default_rng(0).integers(0, 200, (24, 20))


def data() -> Iterator[dict[str, np.ndarray]]:
    """Samples of token ids."""
    return ({"input_ids": row[None]} for row in TOKENS)


def other_data() -> Iterator[dict[str, np.ndarray]]:
    """Others, to judge on."""
    return ({"input_ids": np.roll(row, 3)[None]} for row in TOKENS)


def shifted(by: float):
    """A "model" whose logits for a token are its one-hot row, and one that is worse by so much."""

    def run(feeds):
        ids = feeds["input_ids"]
        logits = np.zeros((*ids.shape, 9), np.float32)
        following = np.roll(ids, -1, axis=1)
        np.put_along_axis(logits, following[..., None], 3.0 - by, axis=-1)
        return {"logits": logits}

    return run


def evaluated(run, *feeds, data=None) -> Evaluation:
    """The evaluation of a model of tokens on some inputs, by the metric that fits."""
    examples = [
        Example(one, data or one, [spec for spec in INPUTS if spec.name in one], [LOGITS])
        for one in feeds
    ]
    found = evaluation_of(run, examples, default_metrics([LOGITS]))
    assert found is not None
    return found
