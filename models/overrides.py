"""Fields of the configuration from text, as the command line's ``--set key=value`` gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .attention_pattern import AttentionPattern
from .config_error import ConfigError

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_overrides(overrides: Mapping[str, str], types: Mapping[str, str]) -> dict[str, Any]:
    """Turn each text into the type of its field.

    Args:
        overrides: texts by the name of their field.
        types: the type of each field, as the configuration's annotation spells it.

    Raises:
        ConfigError: no such field (the valid ones are named), or text that is not of its type.
    """
    values: dict[str, Any] = {}
    for name, text in overrides.items():
        if name not in types:
            raise ConfigError(
                name, f"one of the fields {', '.join(types)}", name, "check the spelling"
            )
        values[name] = _parse(name, types[name], text.strip())
    return values


def _parse(name: str, type_: str, text: str) -> Any:
    if type_.endswith("| None"):
        if text.lower() in ("none", "null", ""):
            return None
        type_ = type_.removesuffix("| None").strip()
    parsers: dict[str, tuple[Callable[[str], Any], str]] = {
        "int": (int, "an integer"),
        "float": (float, "a number"),
        "bool": (_bool, "true or false"),
        "str": (str, "text"),
        "Attention": (_attention, "patterns"),
        "PrunedHeads": (_pruned_heads, 'JSON such as {"encoder.0.self": [1]}'),
    }
    parser, expected = parsers[type_]
    try:
        return parser(text)
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(name, expected, text, f"write --set {name}=VALUE") from None


def _bool(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)


def _attention(text: str) -> Any:
    """One pattern; or ``a/b`` for layers, each of which may be ``a+b`` for its heads."""
    if "/" not in text and "+" not in text:
        return AttentionPattern.parse(text)
    layers: list[Any] = []
    for layer in text.split("/"):
        heads = tuple(AttentionPattern.parse(head) for head in layer.split("+"))
        layers.append(heads if len(heads) > 1 else heads[0])
    return tuple(layers)


def _pruned_heads(text: str) -> dict[str, tuple[int, ...]]:
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(text)
    return {name: tuple(heads) for name, heads in data.items()}
