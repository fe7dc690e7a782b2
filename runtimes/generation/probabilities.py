"""Probabilities of scores, in the precision in which transformers computes them: float32."""

from __future__ import annotations

import numpy as np


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities [..., V] float32 of scores [..., V]; a score of -inf is a probability of 0."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms [..., V] float32 of the probabilities of scores [..., V]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = scores - scores.max(axis=-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cumulated(probabilities: np.ndarray) -> np.ndarray:
    """Sums [..., V] float32 of the probabilities up to each, added up in float64."""
    return np.cumsum(probabilities, axis=-1, dtype=np.float64).astype(np.float32)


def entropy(scores: np.ndarray) -> np.ndarray:
    """The entropy [..., 1] of the distribution of scores [..., V], in nats."""
    logs = log_softmax(scores)
    terms = np.where(np.isneginf(logs), np.float32(0), logs) * np.exp(logs)
    return -terms.sum(axis=-1, keepdims=True)


def greatest(scores: np.ndarray, count: int) -> np.ndarray:
    """The indices [..., K] of the ``count`` greatest scores [..., V], greatest first.

    Of equal ones the first comes first. NaN is the greatest of all.
    """
    count = min(count, scores.shape[-1])
    if count == scores.shape[-1]:
        found = np.broadcast_to(np.arange(count), scores.shape)
    else:
        found = np.sort(np.argpartition(-scores, count - 1, axis=-1)[..., :count], axis=-1)
    order = np.argsort(-np.take_along_axis(scores, found, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(found, order, axis=-1)
