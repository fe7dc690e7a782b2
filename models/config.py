"""What an OmniNet is: one frozen dataclass that validates itself, and the named sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

from .activations import ACTIVATIONS
from .attention_pattern import AttentionPattern, as_tuples, from_json, to_json
from .config_error import ConfigError, unknown_field
from .overrides import parse_overrides

__all__ = ["CONFIGS", "AttentionPattern", "ConfigError", "OmniNetConfig"]

KINDS = ("encoder", "decoder", "encoder-decoder")
POSITIONS = ("absolute", "sinusoidal", "relative", "rotary", "alibi")
NORMS = ("layernorm", "rmsnorm")
NORM_ORDERS = ("pre", "post")
ROTARY_SCALINGS = ("none", "linear", "ntk", "yarn")
AUTOCASTS = ("none", "bfloat16", "float16")
QUANTIZATIONS = ("none", "uint8", "int8")

LayerAttention: TypeAlias = AttentionPattern | tuple[AttentionPattern, ...]
"""One layer: one pattern for all its heads, or one for each head."""

Attention: TypeAlias = AttentionPattern | tuple[LayerAttention, ...]
"""All layers the same, or one entry a layer: the encoder's first, then the decoder's."""

PrunedHeads: TypeAlias = Mapping[str, Sequence[int]] | tuple[tuple[str, tuple[int, ...]], ...]
"""By the name of an attention, heads that were removed; kept as pairs, so that it hashes."""

_Rule: TypeAlias = tuple[str, bool, str, str]
"""A field, whether its value makes a model, what is expected of it, and a hint."""

DENSE = AttentionPattern()


@dataclass(frozen=True)
class OmniNetConfig:
    """The shape and the options of an OmniNet.

    Raises:
        ConfigError: a field, or a pair of fields, makes no model; the message names the field.
    """

    kind: str = "encoder-decoder"
    vocab_size: int = 50257
    hidden_size: int = 1024
    num_layers: int = 12
    num_decoder_layers: int | None = None  # of an encoder-decoder; None: as many as num_layers
    num_heads: int = 16
    ffn_ratio: float = 4
    activation: str = "gelu"
    attention_bias: bool = True
    ffn_bias: bool = True
    output_bias: bool = False
    tie_embeddings: bool = True
    scale_embeddings: bool = False  # multiply token embeddings by sqrt(hidden_size)
    embedding_norm: bool = False  # normalize after adding positions, as BERT does
    pad_token_id: int | None = None
    max_positions: int = 1024

    positions: str = "absolute"
    rotary_base: float = 10000.0
    rotary_fraction: float = 1.0
    rotary_scaling: str = "none"
    rotary_factor: float = 1.0
    rotary_original_length: int | None = None  # None: max_positions
    relative_buckets: int = 32
    relative_max_distance: int = 128

    norm: str = "layernorm"
    norm_eps: float = 1e-5
    norm_order: str = "pre"

    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    ffn_dropout: float = 0.0

    attention: Attention = DENSE
    sparse_threshold: int = 1024  # from this many tokens on, sparse patterns run blockwise
    head_pruning: bool = False
    head_pruning_threshold: float = 0.5
    head_pruning_penalty: float = 0.01
    pruned_heads: PrunedHeads = ()

    gradient_checkpointing: bool = False
    autocast: str = "none"
    quantization: str = "none"  # the integers that inputs of linear layers are rounded to

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_shapes()
        object.__setattr__(self, "attention", as_tuples(self.attention))
        self._check_attention()
        self._check_pruned_heads()

    # -- derived sizes ---------------------------------------------------------------------

    @property
    def head_size(self) -> int:
        """D, the width of one head: hidden_size / num_heads."""
        return self.hidden_size // self.num_heads

    @property
    def ffn_size(self) -> int:
        """The inner width of a feed-forward: hidden_size * ffn_ratio."""
        return int(self.hidden_size * self.ffn_ratio)

    @property
    def rotary_size(self) -> int:
        """How many of the D dimensions of a head are rotated."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def encoder_layers(self) -> int:
        """Layers of the encoder; 0 when there is none."""
        return 0 if self.kind == "decoder" else self.num_layers

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder; 0 when there is none."""
        if self.kind == "encoder":
            return 0
        if self.kind == "decoder" or self.num_decoder_layers is None:
            return self.num_layers
        return self.num_decoder_layers

    def attention_names(self) -> list[str]:
        """Each attention's name: ``encoder.0.self``, ``decoder.0.self``, ``decoder.0.cross``."""
        names = [f"encoder.{i}.self" for i in range(self.encoder_layers)]
        names += [f"decoder.{i}.self" for i in range(self.decoder_layers)]
        if self.kind == "encoder-decoder":
            names += [f"decoder.{i}.cross" for i in range(self.decoder_layers)]
        return names

    def removed_heads(self) -> dict[str, tuple[int, ...]]:
        """The heads that were removed, by the name of their attention."""
        return {name: tuple(heads) for name, heads in dict(self.pruned_heads).items()}

    def kept_heads(self, name: str) -> tuple[int, ...]:
        """The heads of the attention ``name`` that were not removed, by their first numbering."""
        gone = self.removed_heads().get(name, ())
        return tuple(head for head in range(self.num_heads) if head not in gone)

    def head_patterns(self, name: str) -> tuple[AttentionPattern, ...]:
        """The pattern of each kept head of the attention ``name``; cross-attention is dense."""
        side, layer, which = name.split(".")
        kept = self.kept_heads(name)
        if which == "cross":
            flash = self.attention == AttentionPattern("flash")
            return (AttentionPattern("flash" if flash else "dense"),) * len(kept)
        if isinstance(self.attention, AttentionPattern):
            return (self.attention,) * len(kept)
        entry = self.attention[int(layer) + (self.encoder_layers if side == "decoder" else 0)]
        if isinstance(entry, AttentionPattern):
            return (entry,) * len(kept)
        return tuple(entry[head] for head in kept)

    # -- making one ------------------------------------------------------------------------

    @classmethod
    def named(cls, name: str, **overrides: Any) -> OmniNetConfig:
        """The configuration called ``name`` in `CONFIGS`, with some fields replaced."""
        if name not in CONFIGS:
            raise ConfigError("config", f"one of {', '.join(CONFIGS)}", name, "pick one of those")
        known = [f.name for f in fields(cls)]
        for key in overrides:
            if key not in known:
                raise unknown_field(key, known)
        return replace(CONFIGS[name], **overrides)

    @classmethod
    def from_overrides(cls, overrides: Mapping[str, object], name: str = "tiny") -> OmniNetConfig:
        """The named configuration with fields as text (``--set key=value``), or as values."""
        types = {field.name: str(field.type) for field in fields(cls)}
        return cls.named(name, **parse_overrides(overrides, types))

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values; `from_dict` reads them back."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["attention"] = to_json(self.attention)
        data["pruned_heads"] = {k: list(v) for k, v in self.removed_heads().items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> OmniNetConfig:
        """Read what `to_dict` wrote."""
        known = [f.name for f in fields(cls)]
        for key in data:
            if key not in known:
                raise unknown_field(key, known)
        values = dict(data)
        if "attention" in values:
            values["attention"] = from_json(values["attention"])
        return cls(**values)

    # -- checks ----------------------------------------------------------------------------

    def _check_choices(self) -> None:
        for name, choices in (
            ("kind", KINDS),
            ("positions", POSITIONS),
            ("norm", NORMS),
            ("norm_order", NORM_ORDERS),
            ("rotary_scaling", ROTARY_SCALINGS),
            ("autocast", AUTOCASTS),
            ("quantization", QUANTIZATIONS),
            ("activation", tuple(ACTIVATIONS)),
        ):
            value = getattr(self, name)
            if value not in choices:
                hint = f"set {name} to one of those"
                if name == "activation":
                    hint += ", or add yours with register_activation"
                raise ConfigError(name, f"one of {', '.join(choices)}", value, hint)

    def _check_numbers(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
            "max_positions",
            "rotary_original_length",
            "relative_buckets",
            "relative_max_distance",
            "sparse_threshold",
        ):
            value = getattr(self, name)
            optional = name in ("num_decoder_layers", "rotary_original_length")
            if optional and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(name, "a positive integer", value, f"give {name} at least 1")
        for name in ("ffn_ratio", "rotary_base", "rotary_factor", "norm_eps"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0 or not math.isfinite(value):
                raise ConfigError(name, "a positive number", value, f"give {name} above 0")
        for name in ("attention_dropout", "residual_dropout", "ffn_dropout"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ConfigError(name, "a rate in [0, 1)", value, "0 switches dropout off")
        for name, most in (("head_pruning_threshold", 1.0), ("head_pruning_penalty", math.inf)):
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value <= most:
                raise ConfigError(
                    name, f"a number from 0 to {most}", value, "default: leave it out"
                )
        for name in (
            "attention_bias",
            "ffn_bias",
            "output_bias",
            "tie_embeddings",
            "scale_embeddings",
            "embedding_norm",
            "head_pruning",
            "gradient_checkpointing",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(name, "true or false", getattr(self, name), "no quotes around it")

    def _check_shapes(self) -> None:
        for name, holds, expected, hint in (*self._size_rules(), *self._position_rules()):
            if not holds:
                raise ConfigError(name, expected, getattr(self, name), hint)

    def _size_rules(self) -> tuple[_Rule, ...]:
        return (
            (
                "num_heads",
                self.hidden_size % self.num_heads == 0,
                f"a divisor of hidden_size {self.hidden_size}",
                "the head size is hidden_size / num_heads",
            ),
            (
                "num_decoder_layers",
                self.num_decoder_layers is None or self.kind == "encoder-decoder",
                f"None for kind={self.kind}",
                "num_layers is the count of the only side; or set kind=encoder-decoder",
            ),
            (
                "ffn_ratio",
                self.hidden_size * self.ffn_ratio == self.ffn_size,
                f"a ratio that makes hidden_size {self.hidden_size} an integer",
                "the inner width is hidden_size * ffn_ratio",
            ),
            (
                "pad_token_id",
                self.pad_token_id is None or 0 <= self.pad_token_id < self.vocab_size,
                f"a token below vocab_size {self.vocab_size}",
                "leave it out for no padding token",
            ),
        )

    def _position_rules(self) -> tuple[_Rule, ...]:
        rotary, relative = self.positions == "rotary", self.positions == "relative"
        return (
            (
                "hidden_size",
                self.positions != "sinusoidal" or self.hidden_size % 2 == 0,
                "an even number",
                "sinusoids come in pairs",
            ),
            (
                "rotary_fraction",
                not rotary
                or (
                    0 < self.rotary_fraction <= 1
                    and self.rotary_size >= 2
                    and self.rotary_size % 2 == 0
                    and self.rotary_size == self.head_size * self.rotary_fraction
                ),
                f"a fraction of the head size {self.head_size} that is an even integer, in (0, 1]",
                "rotation works on pairs of dimensions",
            ),
            (
                "rotary_factor",
                not rotary or self.rotary_scaling == "none" or self.rotary_factor >= 1,
                "at least 1",
                "the factor is new length / trained length",
            ),
            (
                "relative_buckets",
                not relative
                or (
                    self.relative_buckets >= 4
                    and self.relative_buckets % 4 == 0
                    and self.relative_max_distance > self.relative_buckets // 2
                ),
                f"a multiple of 4 below twice relative_max_distance {self.relative_max_distance}",
                "half the buckets of each direction are exact, the others logarithmic",
            ),
        )

    def _check_attention(self) -> None:
        if isinstance(self.attention, AttentionPattern):
            return
        layers = self.encoder_layers + self.decoder_layers
        if len(self.attention) != layers:
            raise ConfigError(
                "attention",
                f"one pattern, or one entry for each of {layers} layers",
                f"{len(self.attention)} entries",
                "the encoder's layers come first, then the decoder's",
            )
        for index, entry in enumerate(self.attention):
            heads = (entry,) if isinstance(entry, AttentionPattern) else entry
            if not all(isinstance(head, AttentionPattern) for head in heads):
                raise ConfigError(
                    f"attention[{index}]", "AttentionPattern", entry, "use AttentionPattern.parse"
                )
            if not isinstance(entry, AttentionPattern) and len(entry) != self.num_heads:
                raise ConfigError(
                    f"attention[{index}]",
                    f"one pattern, or one for each of {self.num_heads} heads",
                    f"{len(entry)} patterns",
                    "give each head of the layer its pattern",
                )

    def _check_pruned_heads(self) -> None:
        pruned = {k: tuple(sorted(set(v))) for k, v in self.removed_heads().items() if v}
        object.__setattr__(self, "pruned_heads", tuple(sorted(pruned.items())))
        names = self.attention_names()
        for name, heads in pruned.items():
            if name not in names:
                raise ConfigError(
                    "pruned_heads", f"one of {', '.join(names)}", name, "check the layer's number"
                )
            if not all(isinstance(h, int) and 0 <= h < self.num_heads for h in heads):
                raise ConfigError(
                    f"pruned_heads[{name}]",
                    f"heads from 0 to {self.num_heads - 1}",
                    heads,
                    "heads keep the numbers they had before any removal",
                )
            if len(heads) == self.num_heads:
                raise ConfigError(
                    f"pruned_heads[{name}]", "at least one head left", heads, "keep one head"
                )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


CONFIGS: dict[str, OmniNetConfig] = {
    "tiny": OmniNetConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4),
    "small": OmniNetConfig(vocab_size=8192, hidden_size=256, num_layers=4, num_heads=8),
    "seed": OmniNetConfig(),
}
"""tiny: tests; small: experiments; seed: the size that the project is about, 24 layers of 1024."""
