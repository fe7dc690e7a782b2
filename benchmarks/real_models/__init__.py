"""Models with real weights, out of packages of the registry, to judge quantization on.

Each loader gives a `RealModel`: what is exported, what it is fed, and the figures of its task.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.real_models.classifier import nanoguard
from benchmarks.real_models.embedders import minilm, mpnet
from benchmarks.real_models.language_model import smollm2
from benchmarks.real_models.real_model import RealModel
from benchmarks.real_models.speech import whisper, whisper_encoder

#: The loader of each model, by the name that the command line takes.
MODELS: dict[str, Callable[[], RealModel]] = {
    "minilm": minilm,
    "mpnet": mpnet,
    "nanoguard": nanoguard,
    "smollm2": smollm2,
    "whisper-encoder": whisper_encoder,
    "whisper": whisper,
}
