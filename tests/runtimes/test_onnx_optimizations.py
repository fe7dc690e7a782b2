"""What onnxruntime makes of an artifact's graph when it loads it."""

from __future__ import annotations

import onnxruntime

import omnigraph


def test_a_norm_after_a_residual_keeps_its_faster_form(tiny_artifacts, monkeypatch, tmp_path):
    """onnxruntime knows the rewrite by the name that switches it off."""
    kinds = {}
    plain = onnxruntime.InferenceSession

    def spy(model, options, **how):
        for name, disabled in (("here", how["disabled_optimizers"]), ("usual", [])):
            options.optimized_model_filepath = str(tmp_path / f"{name}.onnx")
            session = plain(model, options, **{**how, "disabled_optimizers": disabled})
            kinds[name] = (tmp_path / f"{name}.onnx").read_bytes()
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    with omnigraph.load(tiny_artifacts["onnx"]):
        pass
    assert b"SkipLayerNormalization" in kinds["usual"]
    assert b"SkipLayerNormalization" not in kinds["here"]
