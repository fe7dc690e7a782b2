"""Taking heads out for good: smaller weights, the numbers of those heads set to zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import Attention
from .config import OmniNetConfig
from .config_error import ConfigError


def pruned_config(config: OmniNetConfig, heads: Mapping[int | str, Iterable[int]]) -> OmniNetConfig:
    """The configuration with ``heads`` removed besides those that are gone already.

    Raises:
        ConfigError: no such layer or head, or no head would be left in a layer.
    """
    removed = {name: set(gone) for name, gone in config.removed_heads().items()}
    for layer, gone in heads.items():
        removed.setdefault(_attention_name(config, layer), set()).update(gone)
    return replace(config, pruned_heads={name: tuple(gone) for name, gone in removed.items()})


def prune(model: nn.Module, config: OmniNetConfig) -> None:
    """Shrink each attention of ``model`` to the heads that ``config`` keeps."""
    for module in model.modules():
        if isinstance(module, Attention):
            _shrink(module, config)


def _attention_name(config: OmniNetConfig, layer: int | str) -> str:
    """``encoder.0.self`` and the like; a number counts self-attentions, the encoder's first."""
    if isinstance(layer, str):
        return layer
    names = [name for name in config.attention_names() if name.endswith(".self")]
    if not 0 <= layer < len(names):
        raise ConfigError(
            "prune_heads", f"a layer from 0 to {len(names) - 1}", layer, f"or one of {names}"
        )
    return names[layer]


def _shrink(attention: Attention, config: OmniNetConfig) -> None:
    kept = config.kept_heads(attention.name)
    if kept == attention.heads:
        return
    order = torch.tensor(
        [attention.heads.index(head) for head in kept], device=attention.query.weight.device
    )
    features = _features(order, attention.head_size)
    for projection in (attention.query, attention.key, attention.value):
        projection.keep_outputs(features)
    attention.output.keep_inputs(features)
    if attention.gate is not None:
        attention.gate.score.keep_outputs(order)
    attention.heads = kept
    attention.patterns = config.head_patterns(attention.name)


def _features(heads: Tensor, size: int) -> Tensor:
    """The features of some heads: [H] -> [H * D]."""
    return (heads.unsqueeze(1) * size + torch.arange(size, device=heads.device)).flatten()
