"""A model with real weights, what it is fed, and what tells whether it still does its task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.quantization_peers import Feeds

#: Of what a model gave and of what the reference gave, for each of the feeds.
Figures = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[Feeds]], dict[str, float]]
Axes = Mapping[str, Mapping[int, str]]
#: Inputs of text, and which of their axes have any size.
TEXT: Axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
#: Rows and tokens of the calls that are timed.
SHAPES = {"1 x 32": (1, 32), "16 x 32": (16, 32)}


@dataclass(frozen=True)
class RealModel:
    """One model. It has one output that counts, float32.

    Args:
        module: the model in torch, in eval mode: the reference, and what the vendors convert.
        axes: the axes of any size, by input.
        calibration: what is calibrated on.
        test: what the figures are of; nothing of it is in ``calibration``.
        figures: the figures of the model's task.
        timed: what the times are of, by name.
        folder: the folder of Hugging Face that we export, where it is not the module.
        options: further options of `omnigraph.export`.
    """

    module: nn.Module
    axes: Axes
    calibration: Sequence[Feeds]
    test: Sequence[Feeds]
    figures: Figures
    timed: Mapping[str, Feeds]
    folder: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def exported(self) -> object:
        """MODEL, as `omnigraph.export` takes it."""
        return self.folder or (self.module, self.example, self.axes)

    @property
    def example(self) -> dict[str, torch.Tensor]:
        """The first inputs of the calibration, in torch."""
        return {name: torch.from_numpy(array) for name, array in self.calibration[0].items()}

    def reference(self, inputs: Sequence[Feeds]) -> list[np.ndarray]:
        """What the module gives for each of the inputs, in float32."""
        with torch.no_grad():
            return [
                self.module(**{n: torch.from_numpy(a) for n, a in feeds.items()}).numpy()
                for feeds in inputs
            ]


def timed_text() -> dict[str, Feeds]:
    """Token ids that every vocabulary has, by their shape."""
    draw = np.random.default_rng(0)
    ids = {name: draw.integers(1000, 8000, shape) for name, shape in SHAPES.items()}
    return {name: {"input_ids": i, "attention_mask": np.ones_like(i)} for name, i in ids.items()}


def text_feeds(ids: Sequence[Sequence[int]]) -> list[Feeds]:
    """One text in each: ``input_ids`` and ``attention_mask``, [1, tokens] int64."""
    arrays = [np.array([row], np.int64) for row in ids]
    return [{"input_ids": a, "attention_mask": np.ones_like(a)} for a in arrays]
