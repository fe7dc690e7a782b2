"""What makes tokens less likely, or more, by what stands in the text already.

Each takes the ids so far [B, L] int64 and scores [B, V] float32, and gives new scores. All but
presence and frequency are those of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


def _seen(ids: np.ndarray, first: np.ndarray, vocabulary: int) -> np.ndarray:
    """Which tokens stand in each row from its first position on, [B, V] bool.

    Args:
        ids: [B, L]; those beyond the vocabulary count for nothing.
        first: [B], or one for all.
    """
    found = np.zeros((len(ids), vocabulary + 1), bool)
    before = np.arange(ids.shape[1]) < np.reshape(first, (-1, 1))
    columns = np.where(before, vocabulary, np.minimum(ids, vocabulary))
    np.put_along_axis(found, columns, True, axis=1)
    return found[:, :vocabulary]


def _scaled(scores: np.ndarray, chosen: np.ndarray, penalty: float) -> np.ndarray:
    """Scores divided by a penalty where they are chosen; those below zero are multiplied."""
    factor = np.float32(penalty)
    return np.where(chosen, np.where(scores < 0, scores * factor, scores / factor), scores)


@dataclass(frozen=True, eq=False)
class RepetitionPenalty:
    """Makes tokens of the prompt and of the text less likely (Keskar et al. 2019, section 4.1).

    Args:
        first: [B], the first position of each row that is no padding.
    """

    penalty: float
    first: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _scaled(scores, _seen(ids, self.first, scores.shape[1]), self.penalty)


@dataclass(frozen=True, eq=False)
class PromptReward:
    """Makes tokens of the prompt likelier: the ``encoder_repetition_penalty`` of a decoder.

    Args:
        prompt: [B, P], padding included, as transformers has it.
    """

    penalty: float
    prompt: np.ndarray

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        present = _seen(self.prompt, np.zeros(1, np.int64), scores.shape[1])
        return _scaled(scores, present, 1 / self.penalty)


@dataclass(frozen=True)
class PresencePenalty:
    """Subtracts from the scores of tokens that were generated, as the API of OpenAI does.

    Args:
        presence: once from each that was generated.
        frequency: for each time that it was.
        prompt_length: positions of the prompt, which count for nothing.
    """

    presence: float
    frequency: float
    prompt_length: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        vocabulary = scores.shape[1]
        counts = np.zeros((len(ids), vocabulary + 1), np.float32)
        new = np.minimum(ids[:, self.prompt_length :], vocabulary)
        np.add.at(counts, (np.arange(len(ids))[:, None], new), 1)
        counts = counts[:, :vocabulary]
        taken = np.float32(self.presence) * (counts > 0) + np.float32(self.frequency) * counts
        return scores - taken


@dataclass(frozen=True)
class LengthDecay:
    """Raises the score of the end, more with each token (``exponential_decay_length_penalty``).

    Args:
        start: the length of a row, prompt included, from which on it grows.
    """

    start: int
    factor: float
    eos: tuple[int, ...]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        past = ids.shape[1] - self.start
        if past <= 0:
            return scores
        raised = scores.copy()
        ends = scores[:, self.eos]
        added = np.abs(ends) * np.float32(self.factor**past - 1)
        raised[:, self.eos] = ends + np.where(np.isfinite(ends), added, np.float32(0))
        return raised
