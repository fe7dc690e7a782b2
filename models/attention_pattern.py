"""Which keys a head looks at: the description only (the masks are made in masks.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .config_error import ConfigError

PATTERN_TYPES = ("dense", "flash", "sliding_window", "block_sparse")


@dataclass(frozen=True)
class AttentionPattern:
    """What one head sees; positions are counted from 0, past included.

    - ``dense``: every key.
    - ``flash``: every key, through torch's fused kernel where the machine has one.
    - ``sliding_window``: keys with |i - j| < ``window`` (Longformer, Beltagy et al. 2020,
      section 3.1); in a causal layer 0 <= i - j < ``window``.
    - ``block_sparse``: with positions in blocks of ``block_size``, the block of the query and
      its two neighbours, the first ``global_blocks`` blocks (which see and are seen by all), and
      ``random_blocks`` more, drawn from ``seed`` (BigBird, Zaheer et al. 2020, section 2).

    Raises:
        ConfigError: a field is out of its range.
    """

    type: str = "dense"
    window: int = 128
    block_size: int = 64
    global_blocks: int = 1
    random_blocks: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.type not in PATTERN_TYPES:
            raise ConfigError(
                "attention.type",
                f"one of {', '.join(PATTERN_TYPES)}",
                self.type,
                "write for instance attention=sliding_window:window=64",
            )
        for name, least in (
            ("window", 1),
            ("block_size", 1),
            ("global_blocks", 0),
            ("random_blocks", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"attention.{name}",
                    f"an integer of at least {least}",
                    value,
                    f"{name} counts {'tokens' if name in ('window', 'block_size') else 'whole'}"
                    " units; remove it to take the default",
                )

    @property
    def is_sparse(self) -> bool:
        """Whether some keys are left out whatever the mask says."""
        return self.type in ("sliding_window", "block_sparse")

    def to_dict(self) -> dict[str, Any]:
        """The fields that this type uses, for JSON."""
        used = {
            "dense": (),
            "flash": (),
            "sliding_window": ("window",),
            "block_sparse": ("block_size", "global_blocks", "random_blocks", "seed"),
        }[self.type]
        return {"type": self.type, **{k: v for k, v in asdict(self).items() if k in used}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AttentionPattern:
        """The inverse of `to_dict`."""
        known = [field.name for field in fields(cls)]
        for name in data:
            if name not in known:
                raise ConfigError(
                    "attention", f"fields out of {', '.join(known)}", name, "remove or rename it"
                )
        return cls(**data)

    @classmethod
    def parse(cls, text: str) -> AttentionPattern:
        """Read ``type`` or ``type:name=value,name=value``, as the command line writes it."""
        type_, _, rest = text.strip().partition(":")
        options: dict[str, Any] = {}
        for item in filter(None, rest.split(",")):
            name, _, value = item.partition("=")
            try:
                options[name.strip()] = int(value)
            except ValueError:
                raise ConfigError(
                    f"attention.{name.strip()}",
                    "name=integer",
                    item,
                    "write for instance attention=sliding_window:window=64",
                ) from None
        return cls.from_dict({"type": type_, **options})


def as_tuples(attention: Any) -> Any:
    """Patterns in lists or tuples, as tuples all the way down."""
    if isinstance(attention, list | tuple):
        return tuple(as_tuples(entry) for entry in attention)
    if isinstance(attention, AttentionPattern):
        return attention
    raise ConfigError(
        "attention",
        "an AttentionPattern, or a sequence of them",
        attention,
        "AttentionPattern.parse reads text such as sliding_window:window=64",
    )


def to_json(attention: Any) -> Any:
    """A pattern, or nested tuples of them, as JSON values."""
    if isinstance(attention, AttentionPattern):
        return attention.to_dict()
    return [to_json(entry) for entry in attention]


def from_json(data: Any) -> Any:
    """The inverse of `to_json`."""
    if isinstance(data, Mapping):
        return AttentionPattern.from_dict(data)
    if isinstance(data, list | tuple):
        return tuple(from_json(entry) for entry in data)
    return data
