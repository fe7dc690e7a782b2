"""What changes the distribution that a token is drawn from: temperature, and the cuts of its tail.

Each takes the ids so far [B, L] int64 and scores [B, V] float32, and gives new scores; a token that
is cut off has -inf. Where two cuts could be meant, it is the one of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omnigraph.runtimes.generation.probabilities import (
    cumulated,
    entropy,
    greatest,
    log_softmax,
    softmax,
)

#: `TopH` looks at this many tokens, the likeliest.
_TOP_H_TOKENS = 100


def _without(scores: np.ndarray, removed: np.ndarray) -> np.ndarray:
    return np.where(removed, np.float32(-np.inf), scores)


def _below_greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """Which scores are below the ``count`` greatest, [B, V] bool."""
    count = min(count, scores.shape[-1])
    least = np.partition(scores, -count, axis=-1)[..., -count, None]
    return scores < least


@dataclass(frozen=True)
class Temperature:
    """Divides the scores: below 1 for likelier tokens, above 1 for more even odds."""

    temperature: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores / np.float32(self.temperature)


@dataclass(frozen=True)
class TopK:
    """Keeps the ``top_k`` greatest scores, and those that equal the last of them."""

    top_k: int
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _without(scores, _below_greatest(scores, max(self.top_k, self.at_least)))


@dataclass(frozen=True)
class TopP:
    """Keeps the likeliest tokens that have ``top_p`` together (Holtzman et al. 2019)."""

    top_p: float
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        order = np.argsort(scores, axis=-1, kind="stable")
        sums = cumulated(softmax(np.take_along_axis(scores, order, axis=-1)))
        sorted_out = sums <= np.float32(1 - self.top_p)
        sorted_out[..., -self.at_least :] = False
        removed = np.empty_like(sorted_out)
        np.put_along_axis(removed, order, sorted_out, axis=-1)
        return _without(scores, removed)


@dataclass(frozen=True)
class TopH:
    """Keeps the likeliest tokens within a share of the entropy (Potraghloo et al. 2025)."""

    top_h: float

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        likeliest = greatest(scores, _TOP_H_TOKENS)
        top = np.take_along_axis(scores, likeliest, axis=-1)
        probabilities = softmax(top)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = -probabilities * np.log(probabilities)
        kept = np.cumsum(terms, axis=-1) <= entropy(top) * np.float32(self.top_h)
        kept[..., 0] = True
        removed = np.ones(scores.shape, bool)
        np.put_along_axis(removed, likeliest, ~kept, axis=-1)
        return _without(scores, removed)


@dataclass(frozen=True)
class MinP:
    """Keeps tokens that are at least ``min_p`` times as likely as the likeliest (Nguyen 2024)."""

    min_p: float
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        probabilities = softmax(scores)
        least = np.float32(self.min_p) * probabilities.max(axis=-1, keepdims=True)
        removed = probabilities < least
        np.put_along_axis(removed, greatest(probabilities, self.at_least), False, axis=-1)
        return _without(scores, removed)


@dataclass(frozen=True)
class TypicalP:
    """Keeps tokens whose surprise is nearest to the entropy (Meister et al. 2022, section 4)."""

    typical_p: float
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        distance = np.abs(-log_softmax(scores) - entropy(scores))
        order = np.argsort(distance, axis=-1, kind="stable")
        sorted_distance = np.take_along_axis(distance, order, axis=-1)
        sums = cumulated(softmax(np.take_along_axis(scores, order, axis=-1)))
        last = (sums < np.float32(self.typical_p)).sum(axis=-1, keepdims=True)
        last = np.minimum(last, scores.shape[-1] - 1)
        sorted_out = sorted_distance > np.take_along_axis(sorted_distance, last, axis=-1)
        sorted_out[..., : self.at_least] = False
        removed = np.empty_like(sorted_out)
        np.put_along_axis(removed, order, sorted_out, axis=-1)
        return _without(scores, removed)


@dataclass(frozen=True)
class EpsilonCutoff:
    """Keeps tokens of at least a probability (Hewitt et al. 2022)."""

    epsilon: float
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        removed = softmax(scores) < np.float32(self.epsilon)
        return _without(scores, removed & _below_greatest(scores, self.at_least))


@dataclass(frozen=True)
class EtaCutoff:
    """Keeps tokens of at least a probability that falls with the entropy (Hewitt et al. 2022)."""

    epsilon: float
    at_least: int = 1

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        epsilon = np.float32(self.epsilon)
        eta = np.minimum(epsilon, np.sqrt(epsilon) * np.exp(-entropy(scores)))
        removed = softmax(scores) < eta
        return _without(scores, removed & _below_greatest(scores, self.at_least))
