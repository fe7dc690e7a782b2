"""Fields of the configuration from text, as the command line's ``--set key=value`` gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from .attention_pattern import AttentionPattern
from .config_error import ConfigError, unknown_field

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def parse_overrides(overrides: Mapping[str, object], types: Mapping[str, str]) -> dict[str, Any]:
    """Turn each text into the type of its field; other values must be of that type.

    Args:
        overrides: texts or values by the name of their field.
        types: the type of each field, as the configuration's annotation spells it.

    Raises:
        ConfigError: no such field (the valid ones are named), or a text or value that is not of its
            type.
    """
    values: dict[str, Any] = {}
    for name, given in overrides.items():
        if name not in types:
            raise unknown_field(name, types)
        values[name] = _parse(name, types[name], given)
    return values


def _parse(name: str, type_: str, given: Any) -> Any:
    if isinstance(given, str):
        given = given.strip()
    if type_.endswith("| None"):
        if given is None or str(given).lower() in ("none", "null", ""):
            return None
        type_ = type_.removesuffix("| None").strip()
    reader, own, expected = _TYPES[type_]
    suits = isinstance(given, bool) == (own is bool) and isinstance(given, own)
    if suits or isinstance(given, str):
        try:
            return reader(given)
        except ConfigError:
            raise
        except (TypeError, ValueError):
            pass
    raise ConfigError(name, expected, given, f"write --set {name}=VALUE")


def _bool(given: str | bool) -> bool:
    text = str(given).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(given)


def _attention(given: Any) -> Any:
    """One pattern; or ``a/b`` for layers, each of which may be ``a+b`` for its heads."""
    if not isinstance(given, str):
        return given
    if "/" not in given and "+" not in given:
        return AttentionPattern.parse(given)
    layers: list[Any] = []
    for layer in given.split("/"):
        heads = tuple(AttentionPattern.parse(head) for head in layer.split("+"))
        layers.append(heads if len(heads) > 1 else heads[0])
    return tuple(layers)


def _pruned_heads(given: str | Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    data = json.loads(given) if isinstance(given, str) else given
    if not isinstance(data, Mapping):
        raise ValueError(given)
    return {name: tuple(heads) for name, heads in data.items()}


#: By annotation: what reads a text or a value, the types of values, and what to say of them.
_TYPES: Mapping[str, tuple[Callable[[Any], Any], Any, str]] = {
    "int": (int, int, "an integer"),
    "float": (float, (int, float), "a number"),
    "bool": (_bool, bool, "true or false"),
    "str": (str, str, "text"),
    "Attention": (_attention, (AttentionPattern, list, tuple), "patterns"),
    "PrunedHeads": (_pruned_heads, Mapping, 'JSON such as {"encoder.0.self": [1]}'),
}
