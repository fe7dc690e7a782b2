"""OmniNet, the reference transformer: every attention pattern and position scheme in one model.

Importing this package imports nothing heavy; torch is loaded when a name below is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention_pattern import AttentionPattern
    from .config import CONFIGS, ConfigError, OmniNetConfig
    from .omninet import OmniNet

__all__ = ["CONFIGS", "AttentionPattern", "ConfigError", "OmniNet", "OmniNetConfig"]

_HOME = {
    "AttentionPattern": "attention_pattern",
    "CONFIGS": "config",
    "ConfigError": "config",
    "OmniNet": "omninet",
    "OmniNetConfig": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
