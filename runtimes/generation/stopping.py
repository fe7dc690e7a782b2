"""What ends a row: an end-of-sequence id, a length, a text, a time, or what the caller says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.runtimes.generation.config import GenerationConfig

#: Takes the ids so far [R, L] int64, and says which rows end [R] bool, or whether all do.
Criterion: TypeAlias = Callable[[np.ndarray], Any]

#: Why a row ended, by its number; 0 is a row that goes on.
REASONS = ("", "eos", "stop_string", "stopping_criteria", "time", "length", "cancelled")
CANCELLED = REASONS.index("cancelled")
#: A tail that is searched for a text begins so many tokens before it could.
_BEFORE = 4


class Tokenizer(Protocol):
    """What is needed of a tokenizer: that of `tokenizers`, of transformers, or one's own."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of some ids."""


class Stopping:
    """Says of each row whether it ends, and why.

    Args:
        config: gives the ids, the texts and the time.
        longest: positions at most, prompt included.
        own: the caller's.
        tokenizer: reads ids as text, for texts that end a row.

    Raises:
        UsageError: there are such texts, and no tokenizer.
    """

    def __init__(
        self,
        config: GenerationConfig,
        longest: int,
        own: Sequence[Criterion] = (),
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._criteria: list[tuple[str, Criterion]] = []
        if config.eos_token_id:
            ends = np.array(config.eos_token_id)
            self._add("eos", lambda ids: np.isin(ids[:, -1], ends))
        if config.stop_strings:
            if tokenizer is None:
                raise UsageError(
                    "A text can end a generation only if there is a tokenizer to read ids with",
                    expected="tokenizer=… with stop_strings",
                    found="none",
                    hint="tokenizers.Tokenizer.from_file('tokenizer.json'), or any object with "
                    "decode(ids, skip_special_tokens=…)",
                )
            self._add("stop_string", StopStrings(config.stop_strings, tokenizer))
        for criterion in own:
            self._add("stopping_criteria", criterion)
        if config.max_time is not None:
            until = time.monotonic() + config.max_time
            self._add("time", lambda ids: time.monotonic() > until)
        self._add("length", lambda ids: ids.shape[1] >= longest)

    def _add(self, reason: str, criterion: Criterion) -> None:
        self._criteria.append((reason, criterion))

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """The reason of each row [R] int8, 0 where it goes on; ids are [R, L] int64."""
        found = np.zeros(len(ids), np.int8)
        for reason, criterion in self._criteria:
            ended = np.broadcast_to(np.asarray(criterion(ids), bool).reshape(-1), found.shape)
            found[ended & (found == 0)] = REASONS.index(reason)
        return found


class StopStrings:
    """Ends a row whose last token completes one of some texts, or goes on beyond it."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        self._texts, self._tokenizer = texts, tokenizer
        # A token has at least one byte, so that no text is spread over more tokens than bytes.
        self._tail = max(len(text.encode()) for text in texts) + _BEFORE

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        return np.array([self._ends(row) for row in ids[:, -self._tail :].tolist()])

    def _ends(self, tail: list[int]) -> bool:
        whole = self._tokenizer.decode(tail, skip_special_tokens=False)
        found = [text for text in self._texts if text in whole]
        if not found:
            return False
        before = self._tokenizer.decode(tail[:-1], skip_special_tokens=False)
        return any(whole.rindex(text) + len(text) > len(before) for text in found)
