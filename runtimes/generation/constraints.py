"""What forbids tokens, or forces them: a score of -inf is never chosen.

Each takes the ids so far [B, L] int64 and scores [B, V] float32, and gives new scores. All are
those of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.errors import UsageError

_NEVER = np.float32(-np.inf)


def _inside(tokens: Sequence[int], vocabulary: int) -> list[int]:
    return [token for token in tokens if token < vocabulary]


def _forbidden(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    changed = scores.copy()
    changed[:, _inside(tokens, scores.shape[1])] = _NEVER
    return changed


def _only(scores: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    forced = np.full_like(scores, _NEVER)
    inside = _inside(tokens, scores.shape[1])
    if not inside:
        raise UsageError(
            "A token that is to be forced is not in the vocabulary",
            expected=f"an id below {scores.shape[1]}",
            found=", ".join(map(str, tokens)),
            hint="forced_bos_token_id and forced_eos_token_id are ids of the model's tokenizer",
        )
    forced[:, inside] = 0
    return forced


@dataclass(frozen=True)
class LeastLength:
    """Forbids the end until a row is ``length`` long, prompt included."""

    length: int
    eos: tuple[int, ...]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _forbidden(scores, self.eos) if ids.shape[1] < self.length else scores


@dataclass(frozen=True)
class ForcedFirst:
    """Forces one token after a prompt of one token (``forced_bos_token_id``)."""

    token: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _only(scores, (self.token,)) if ids.shape[1] == 1 else scores


@dataclass(frozen=True)
class ForcedLast:
    """Forces one of some tokens where the next is the last that fits."""

    longest: int
    tokens: tuple[int, ...]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return _only(scores, self.tokens) if ids.shape[1] == self.longest - 1 else scores


@dataclass(frozen=True)
class Suppressed:
    """Forbids tokens: always, or only where a row is ``at`` long."""

    tokens: tuple[int, ...]
    at: int | None = None

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if self.at is not None and ids.shape[1] != self.at:
            return scores
        return _forbidden(scores, self.tokens)


@dataclass(frozen=True)
class NoRepeatedNgram:
    """Forbids tokens that would end a sequence of ``size`` tokens which stands there already."""

    size: int

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        length, vocabulary = ids.shape[1], scores.shape[1]
        if length < self.size:
            return scores
        windows = np.lib.stride_tricks.sliding_window_view(ids, self.size, axis=1)
        prefix = ids[:, length + 1 - self.size :]
        matches = (windows[..., :-1] == prefix[:, None]).all(axis=-1)
        banned = np.zeros((len(ids), vocabulary + 1), bool)
        columns = np.where(matches, np.minimum(windows[..., -1], vocabulary), vocabulary)
        np.put_along_axis(banned, columns, True, axis=1)
        return np.where(banned[:, :vocabulary], _NEVER, scores)


class NoPromptNgram:
    """Forbids tokens that would end a sequence of ``size`` tokens of the prompt.

    Args:
        prompt: [B, P]; rows of scores may be several for each row of it.
    """

    def __init__(self, size: int, prompt: np.ndarray) -> None:
        self.size = size
        self._next: list[dict[tuple[int, ...], list[int]]] = []
        for row in prompt.tolist():
            following: dict[tuple[int, ...], list[int]] = {}
            for start in range(len(row) + 1 - size):
                *head, last = row[start : start + size]
                following.setdefault(tuple(head), []).append(last)
            self._next.append(following)

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        changed = scores.copy()
        each, start = len(ids) // len(self._next), ids.shape[1] + 1 - self.size
        for row, tail in enumerate(ids[:, max(0, start) :].tolist()):
            banned = self._next[row // each].get(tuple(tail), [])
            changed[row, _inside(banned, scores.shape[1])] = _NEVER
        return changed


class SequenceBias:
    """Adds to the score of a token that would end one of some sequences.

    Args:
        biases: what is added, by sequence; -inf forbids it.
    """

    def __init__(self, biases: Mapping[tuple[int, ...], float]) -> None:
        self._single = {words[0]: bias for words, bias in biases.items() if len(words) == 1}
        longer: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for words, bias in biases.items():
            if len(words) > 1:
                longer.setdefault(len(words) - 1, []).append((words, bias))
        self._longer = [
            (
                np.array([words[:-1] for words, _ in group]),
                np.array([words[-1] for words, _ in group]),
                np.array([bias for _, bias in group], np.float32),
            )
            for group in longer.values()
        ]

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        self._check(scores.shape[1])
        added = np.zeros_like(scores)
        if self._single:
            added[:, list(self._single)] = list(self._single.values())
        for prefixes, last, biases in self._longer:
            length = prefixes.shape[1]
            if length <= ids.shape[1]:
                matching = (ids[:, None, -length:] == prefixes).all(axis=-1)
                rows, words = np.nonzero(matching)
                np.add.at(added, (rows, last[words]), biases[words])
        return scores + added

    def _check(self, vocabulary: int) -> None:
        most = max([*self._single, *(int(last.max()) for _, last, _ in self._longer)], default=0)
        if most >= vocabulary:
            raise UsageError(
                "A token of bad_words_ids or sequence_bias is not in the vocabulary",
                expected=f"ids below {vocabulary}",
                found=str(most),
                hint="give ids of the model's own tokenizer",
            )


def without_ends(
    words: Sequence[tuple[int, ...]], eos: Sequence[int]
) -> dict[tuple[int, ...], float]:
    """The biases that forbid some sequences; the end alone is never forbidden."""
    return {word: -np.inf for word in words if len(word) != 1 or word[0] not in eos}
