"""What is computed in bf16 on OpenVINO, where bf16 or the plugin has limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import omnigraph
from omnigraph.contract.tolerance import deviation
from omnigraph.errors import ContractError
from omnigraph.lowering.openvino import ir

#: Its layers are too narrow to be quantized: only its table is, which rounds by less than bf16.
NARROW = {
    "settings": {
        "kind": "decoder", "hidden_size": 8, "num_heads": 1, "num_layers": 2, "vocab_size": 97,
        "positions": "sinusoidal", "scale_embeddings": True, "attention_bias": False,
    }
}  # fmt: skip
SINUSOIDAL = {"config": "tiny", "settings": {"kind": "encoder", "positions": "sinusoidal"}}
FAR = np.random.default_rng(0).integers(0, 256, (1, 1500))
#: Rounding to bf16 (2⁻⁹ of a number at most) in two layers of a dozen roundings.
NEAR = 0.02


@pytest.mark.parametrize(("precision", "model"), [("bf16", SINUSOIDAL), ("int8", NARROW)])
def test_positions_beyond_256_are_not_rounded(tmp_path: Path, precision: str, model: dict):
    outputs = []
    for each in ("fp32", precision):
        (report,) = omnigraph.export(
            "omninet",
            "openvino",
            precision=each,
            programs=["forward"],
            out=tmp_path / each,
            **model,
        )
        with omnigraph.load(report.path, threads=1) as session:
            outputs += session.run(input_ids=FAR % 97).values()
    assert deviation(outputs[1][:, 1000:], outputs[0][:, 1000:]).rms < NEAR


@pytest.mark.slow
def test_the_contract_sees_positions_that_are_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ir, "keep_positions_wide", lambda net: None)
    for precision in ("bf16", "int8"):
        with pytest.raises(ContractError, match="too far from the torch model"):
            omnigraph.export(
                "omninet", "openvino", precision=precision, out=tmp_path / "a", **SINUSOIDAL
            )


def test_one_query_of_one_given_key(tmp_path: Path):
    """The plugin's kernel of an attention read unwritten memory there, or failed."""
    wide = {"kind": "encoder-decoder", "hidden_size": 256, "num_heads": 8, "num_layers": 1}
    settings = {**wide, "ffn_ratio": 1, "vocab_size": 97, "positions": "sinusoidal"}
    draw, outputs = np.random.default_rng(0), []
    given = {
        "decoder_input_ids": np.array([[5]]),
        "cross_key_values.0.key": draw.normal(size=(1, 8, 1, 32)).astype(np.float32),
        "cross_key_values.0.value": draw.normal(size=(1, 8, 1, 32)).astype(np.float32),
    }
    for precision in ("fp32", "bf16"):
        (report,) = omnigraph.export(
            "omninet",
            "openvino",
            precision=precision,
            settings=settings,
            programs=["decode"],
            out=tmp_path / precision,
        )
        with omnigraph.load(report.path, threads=1) as session:
            outputs.append([session.run(program="decode", **given)["logits"] for _ in range(2)])
    for found, expected in zip(outputs[1], outputs[0], strict=True):
        assert deviation(found, expected).rms < NEAR
