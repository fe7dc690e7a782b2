"""The trained models of this folder, and how they are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnigraph.models import OmniNet

#: The folder of each model, by its kind: what `omnigraph export FOLDER` takes.
FOLDERS = {
    "decoder": Path(__file__).parent / "checkpoints" / "decoder",
    "encoder-decoder": Path(__file__).parent / "checkpoints" / "encoder-decoder",
    "decoder-qat": Path(__file__).parent / "checkpoints" / "decoder-qat",
}


def load(source: str | Path) -> OmniNet:
    """A trained model by its kind or its folder: float32, ready to run.

    Weights are kept in float16, and this float32 model of the same numbers is the reference that
    every figure compares with; the float32 weights of training are not kept.
    """
    return OmniNet.load(FOLDERS.get(str(source), Path(source))).float().eval()


def in_storage(model: OmniNet) -> OmniNet:
    """The model itself, its weights in float16; the scales of its quantization stay as they are."""
    model.half()
    if model.fake_quantization is not None:
        model.fake_quantization.float()
    return model


def save(model: OmniNet, folder: Path, training: Mapping[str, Any]) -> None:
    """Write the model in float16 (which rounds the weights of ``model``), and how it was made."""
    in_storage(model).save(folder)
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n", encoding="utf-8")
