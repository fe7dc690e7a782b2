"""The embedding of a sentence, as a folder of sentence-transformers says in its ``modules.json``.

The stages after the model (Pooling, Dense, Normalize) are read as sentence-transformers 2 to 6
write them. Nothing of that package is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from omnigraph.frontends.json_fields import read_json

_ACTIVATIONS = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}
#: The modes of a Pooling, and the older fields that switch them on.
_OLDER_FIELDS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    shown = mask.to(torch.int32).argmax(1)
    return tokens.gather(1, shown[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


def _largest(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)


def _mean(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    weights = weights[..., None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _mean_sqrt(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()


def _weighted(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _mean(tokens, mask * torch.arange(1, mask.shape[1] + 1))


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = torch.arange(mask.shape[1])
    last = (mask * places).argmax(1)  # the last that is shown
    return tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[-1])).squeeze(1)


#: Vectors of tokens [B, T, C] and their mask [B, T] to one vector a sentence [B, C], by mode.
_POOLINGS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted,
    "lasttoken": _last,
}


class UnknownStage(Exception):
    """A stage in ``modules.json`` that is not known here; the text says which."""


class SentenceEmbedding(nn.Module):
    """Vectors of tokens [B, T, C] and their mask [B, T] to one vector a sentence [B, D]."""

    def __init__(self, modes: Sequence[str], stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.modes, self.stages = modes, nn.Sequential(*stages)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The embedding of each sentence; several modes give their vectors side by side."""
        pooled = [_POOLINGS[mode](tokens, mask) for mode in self.modes]
        return self.stages(torch.cat(pooled, dim=-1))


class _Normalize(nn.Module):
    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(embedding, dim=-1)


def sentence_embedding(folder: Path) -> SentenceEmbedding | None:
    """What a folder computes from the vectors of tokens; None where it is of transformers alone.

    Raises:
        UnknownStage: it has a stage that is not known here.
    """
    if not (folder / "modules.json").is_file():
        return None
    entries = read_json(folder / "modules.json")
    kinds = [entry["type"].rpartition(".")[-1] for entry in entries]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise UnknownStage(f"its stages are {', '.join(kinds)}, and not Transformer and Pooling")
    if read_json(folder / "config.json").get("is_encoder_decoder"):
        raise UnknownStage("its Pooling is of the encoder of an encoder-decoder alone")
    pooling, *others = (folder / entry["path"] for entry in entries[1:])
    stages = [_stage(kind, path) for kind, path in zip(kinds[2:], others, strict=True)]
    return SentenceEmbedding(_modes(read_json(pooling / "config.json")), stages).eval()


def _modes(fields: Mapping[str, Any]) -> list[str]:
    """The modes of a Pooling, in the order in which their vectors stand side by side."""
    if fields.get("include_prompt") is False:
        raise UnknownStage("its Pooling leaves out the prompt, whose length is no input")
    asked = fields.get("pooling_mode")
    if asked is None:
        asked = [mode for field, mode in _OLDER_FIELDS.items() if fields.get(field)] or ["mean"]
    modes = [asked] if isinstance(asked, str) else list(asked)
    if unknown := [mode for mode in modes if mode not in _POOLINGS]:
        raise UnknownStage(f"its Pooling is {', '.join(unknown)}, which is not known")
    return modes


def _stage(kind: str, path: Path) -> nn.Module:
    fields = read_json(path / "config.json")
    if {fields.get(f"module_{end}_name") for end in ("input", "output")} - {
        None,
        "sentence_embedding",
    }:
        raise UnknownStage(f"its {kind} is of other tensors than the embedding")
    if kind == "Normalize":
        return _Normalize()
    if kind == "Dense":
        return _dense(path, fields)
    raise UnknownStage(f"its stage {kind} is not known")


def _dense(path: Path, fields: Mapping[str, Any]) -> nn.Module:
    from safetensors.torch import load_file

    name = fields.get("activation_function", "Tanh").rpartition(".")[-1]
    if name not in _ACTIVATIONS or fields.get("use_residual"):
        raise UnknownStage(f"its Dense has a residual, or the activation {name}")
    if not (path / "model.safetensors").is_file():
        raise UnknownStage("its Dense has no model.safetensors")
    layer = nn.Linear(fields["in_features"], fields["out_features"], fields.get("bias", True))
    weights = load_file(path / "model.safetensors")
    layer.load_state_dict({key.removeprefix("linear."): t for key, t in weights.items()})
    return nn.Sequential(layer.float(), _ACTIVATIONS[name]())
