"""What a generation gives: tokens as they come, and all of them at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Token:
    """One new token of one row.

    Args:
        id: in the vocabulary.
        row: of the result: with several sequences for each prompt, those of a prompt together.
        log_prob: of the model, in nats, before anything changed its scores; None if not asked for.
        finish: why the row ends with it: "eos", "stop_string", "stopping_criteria", "time",
            "length" or "cancelled"; "" where it goes on.
    """

    id: int
    row: int = 0
    log_prob: float | None = None
    finish: str = ""


@dataclass(frozen=True, eq=False)
class Generation:
    """All tokens of a request; ``numpy.asarray`` of it is ``ids``.

    Args:
        ids: [R, L] int64, each prompt with its new tokens, filled up with the pad id.
        prompt_length: positions of the prompts, padding included.
        lengths: [R], how many new tokens each row has.
        finish: why each row ended; see `Token`.
        log_probs: [R, L - prompt_length] float32 of the new tokens, as in `Token`; NaN where a row
            has none; None if not asked for.
        scores: [R] float32 of beam search, the sum of processed log-probabilities by the length
            penalty; else None.
    """

    ids: np.ndarray
    prompt_length: int
    lengths: np.ndarray
    finish: tuple[str, ...]
    log_probs: np.ndarray | None = None
    scores: np.ndarray | None = None

    @property
    def new(self) -> list[np.ndarray]:
        """The new tokens of each row, without what fills it up."""
        start = self.prompt_length
        rows = zip(self.ids, self.lengths, strict=True)
        return [row[start : start + length] for row, length in rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The ids."""
        return np.array(self.ids, dtype) if copy else np.asarray(self.ids, dtype)

    def __len__(self) -> int:
        return len(self.ids)
