"""The five ways a transformer can know positions.

Absolute and sinusoidal positions are added to the token embeddings; rotary turns queries and keys;
relative and ALiBi add a bias to the attention scores. Cross-attention has none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .config import OmniNetConfig
from .linear import Embedding


def position_ids(input_ids: Tensor, token_mask: Tensor | None, past: int) -> Tensor:
    """Where each token stands, counting real tokens only, so that left padding shifts nothing.

    Args:
        input_ids: [B, T].
        token_mask: [B, P + T] int64, 1 for a token and 0 for padding; None: no padding.
        past: P, tokens before these.

    Returns:
        [B, T] int64, or [1, T] without a mask.
    """
    length = input_ids.shape[1]
    if token_mask is None:
        return torch.arange(past, past + length, device=input_ids.device).unsqueeze(0)
    return (token_mask.cumsum(dim=1) - 1).clamp(min=0)[:, past:]


class _Float32Constants(nn.Module):
    """Keeps its buffers float32 where the model is cast: angles and distances need the digits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != buffer.dtype:
                setattr(self, name, buffer.to(moved.device))
        return self


class AbsolutePositions(nn.Module):
    """Learned positions (BERT, Devlin et al. 2019, section 3)."""

    def __init__(self, config: OmniNetConfig) -> None:
        super().__init__()
        self.table = Embedding(config.max_positions, config.hidden_size)

    def forward(self, positions: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, C]."""
        return self.table(positions)


class SinusoidalPositions(_Float32Constants):
    """Fixed sines and cosines, at any length (Vaswani et al. 2017, section 3.5)."""

    frequencies: Tensor

    def __init__(self, config: OmniNetConfig) -> None:
        super().__init__()
        exponents = torch.arange(0, config.hidden_size, 2).float() / config.hidden_size
        self.register_buffer("frequencies", 10000.0**-exponents, persistent=False)  # [C/2]

    def forward(self, positions: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, C] with sines at even and cosines at odd dimensions."""
        angles = positions.unsqueeze(-1).float() * self.frequencies  # [B, T, C/2]
        pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # [B, T, C/2, 2]
        return pairs.flatten(-2)


class RotaryPositions(_Float32Constants):
    """The cosines and sines by which queries and keys are rotated (Su et al. 2021, section 3.2)."""

    frequencies: Tensor

    def __init__(self, config: OmniNetConfig) -> None:
        super().__init__()
        frequencies, self.magnitude = rotary_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)  # [R/2]

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T] int64 -> cosines and sines, each [B, T, R/2] float32."""
        angles = positions.unsqueeze(-1).float() * self.frequencies
        if self.magnitude == 1.0:
            return angles.cos(), angles.sin()
        return angles.cos() * self.magnitude, angles.sin() * self.magnitude


def rotary_frequencies(config: OmniNetConfig) -> tuple[Tensor, float]:
    """Angles per position, [R/2] float32, and the factor on cosines and sines.

    Scalings for lengths beyond training: ``linear`` (Chen et al. 2023, section 2.3), ``ntk``
    (a larger base; Peng et al. 2023, YaRN, section 3.1) and ``yarn`` (section 3.2 to 3.4 there).
    """
    size, factor = config.rotary_size, config.rotary_factor
    base = config.rotary_base
    if config.rotary_scaling == "ntk" and size > 2:
        base *= factor ** (size / (size - 2))
    frequencies = base ** -(torch.arange(0, size, 2, dtype=torch.int64).float() / size)
    if config.rotary_scaling == "linear":
        return frequencies / factor, 1.0
    if config.rotary_scaling != "yarn":
        return frequencies, 1.0

    trained = config.rotary_original_length or config.max_positions

    def dimension_of(turns: float) -> float:
        """The dimension pair that turns so many times within the trained length."""
        return size * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(dimension_of(32)), 0)  # turns faster: left alone
    high = min(math.ceil(dimension_of(1)), size - 1)  # turns slower: interpolated
    ramp = (torch.arange(size // 2).float() - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    mixed = frequencies / factor * interpolated + frequencies * (1 - interpolated)
    return mixed, 0.1 * math.log(factor) + 1.0


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first R dimensions of each head, halves paired as in Llama.

    Args:
        x: [B, H, T, D].
        rotary: cosines and sines, [B, 1, T, R/2].
    """
    cosines, sines = (part.to(x.dtype) for part in rotary)
    half = cosines.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [first * cosines - second * sines, second * cosines + first * sines]
    if 2 * half < x.shape[-1]:
        parts.append(rest)
    return torch.cat(parts, dim=-1)


class RelativeBias(nn.Module):
    """A learned bias for each bucket of distances, shared by all layers.

    T5, Raffel et al. 2020, section 2.1.

    The bucket of every distance is computed once, here: logarithms rounded by a runtime
    could land in another bucket than torch's.
    """

    bucket_of: Tensor

    def __init__(self, config: OmniNetConfig, causal: bool) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.farthest = config.relative_max_distance
        self.table = Embedding(config.relative_buckets, config.num_heads)
        distances = torch.arange(-self.farthest, self.farthest + 1)
        buckets = relative_buckets(
            distances, config.relative_buckets, config.relative_max_distance, causal
        )
        self.register_buffer("bucket_of", buckets, persistent=False)  # [2 * farthest + 1]

    def forward(self, distance: Tensor, heads: list[int] | None = None) -> Tensor:
        """Key position less query position, [...] int64 -> [H, ...], for all heads or for some."""
        table = self.table.weight if heads is None else self.table.weight[:, heads]
        by_distance = nn.functional.embedding(self.bucket_of, table)  # [2 * farthest + 1, H]
        index = distance.clamp(-self.farthest, self.farthest) + self.farthest
        return nn.functional.embedding(index, by_distance).movedim(-1, 0)


def relative_buckets(distance: Tensor, buckets: int, farthest: int, causal: bool) -> Tensor:
    """T5's bucket of a distance (key position less query position), elementwise int64."""
    offset = torch.zeros_like(distance)
    if causal:
        steps = (-distance).clamp(min=0)
    else:
        buckets //= 2
        offset = (distance > 0).long() * buckets
        steps = distance.abs()
    exact = buckets // 2
    logarithmic = torch.log(steps.clamp(min=1).float() / exact) / math.log(farthest / exact)
    far = (exact + (logarithmic * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(steps < exact, steps, far)


class AlibiBias(_Float32Constants):
    """A bias that falls linearly with the distance, by a slope for each head.

    Press et al. 2022, section 3; in bidirectional layers the symmetric form, -slope * |i - j|.
    """

    slopes: Tensor

    def __init__(self, config: OmniNetConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        slopes = torch.tensor(alibi_slopes(config.num_heads))
        self.register_buffer("slopes", slopes, persistent=False)  # [H]

    def forward(self, distance: Tensor, heads: list[int] | None = None) -> Tensor:
        """Key position less query position, [...] int64 -> [H, ...], for all heads or for some."""
        slopes = self.slopes if heads is None else self.slopes[heads]
        slopes = slopes.neg().view(-1, *[1] * distance.dim())
        return distance.abs().to(slopes.dtype) * slopes


def alibi_slopes(heads: int) -> list[float]:
    """The geometric slopes; between powers of two, every other one of the next power is taken."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return slopes
