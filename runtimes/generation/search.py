"""Greedy decoding and sampling: one token after another, each row by itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.runtimes.generation.decoder import Decoder, prefill
from omnigraph.runtimes.generation.plan import Plan
from omnigraph.runtimes.generation.probabilities import log_softmax, softmax
from omnigraph.runtimes.generation.stopping import CANCELLED


@dataclass(frozen=True, eq=False)
class Step:
    """One new token of each row that had not ended.

    Args:
        tokens: [R] int64.
        running: [R] bool, which rows it is a token of.
        ended: [R] int8, why rows end with it (`REASONS`); 0 where they go on, or ended before.
        log_probs: [R] float32, or None.
    """

    tokens: np.ndarray
    running: np.ndarray
    ended: np.ndarray
    log_probs: np.ndarray | None


def search(decoder: Decoder, plan: Plan) -> Iterator[Step]:
    """Choose tokens until all rows have ended.

    Args:
        decoder: with a row for each prompt, that has read nothing.

    Raises:
        RunError: the model gave NaN, or failed.
        UsageError: the parameters forbid every token.
    """
    config, prompt = plan.config, plan.prompt
    copies = np.repeat(np.arange(len(prompt.ids)), config.num_return_sequences)
    logits = prefill(decoder, prompt, config.prefill_chunk_size)[copies]
    decoder.reorder(copies)
    length = prompt.ids.shape[1]
    ids = prompt.ids[copies]
    running = np.ones(len(copies), bool)
    while True:
        scores = plan.processed(ids[:, :length], logits)
        tokens = np.where(running, _choose(scores, plan, running), config.pad)
        if length == ids.shape[1]:  # room for as many again
            ids = np.concatenate([ids, np.full_like(ids, config.pad)], axis=1)
        ids[:, length] = tokens
        length += 1
        ended = np.where(running, plan.stopping(ids[:, :length]), 0).astype(np.int8)
        if plan.hooks.cancelled():
            ended[running & (ended == 0)] = CANCELLED
        yield Step(tokens, running.copy(), ended, _log_probs(logits, tokens * running, plan))
        still = running & (ended == 0)
        if not still.any():
            return
        if (still != running).any():  # rows that ended are read no more
            decoder.reorder(np.flatnonzero(still[running]))
            running = still
        found = decoder.feed(tokens[running, None])
        logits = np.zeros((len(ids), found.shape[1]), np.float32)
        logits[running] = found


def _choose(scores: np.ndarray, plan: Plan, running: np.ndarray) -> np.ndarray:
    """A token of each row [R]: the likeliest, or drawn by its probability."""
    check_choice(scores[running])
    if not plan.config.do_sample:
        return scores.argmax(axis=1)
    tokens = np.zeros(len(scores), np.int64)
    for row in np.flatnonzero(running).tolist():
        tokens[row] = draw(scores[row], plan.generators[row])
    return tokens


def draw(scores: np.ndarray, generator: np.random.Generator) -> int:
    """A token, by the probabilities of scores [V]."""
    sums = np.cumsum(softmax(scores), dtype=np.float64)
    found = np.searchsorted(sums, generator.random() * sums[-1], side="right")
    return int(min(found, np.searchsorted(sums, sums[-1])))


def check_choice(scores: np.ndarray) -> None:
    """Refuse rows of scores [R, V] that leave no token.

    Raises:
        UsageError: naming what forbids tokens.
    """
    if np.isneginf(scores.max(axis=1)).any():
        raise UsageError(
            "The parameters forbid every token",
            expected="a token whose score is not -inf",
            found="none",
            hint="relax bad_words_ids, suppress_tokens, no_repeat_ngram_size or your own "
            "logits_processor",
        )


def _log_probs(logits: np.ndarray, tokens: np.ndarray, plan: Plan) -> np.ndarray | None:
    if not plan.hooks.log_probs:
        return None
    return chosen_log_probs(logits, tokens)


def chosen_log_probs(logits: np.ndarray, tokens: np.ndarray | Sequence[int]) -> np.ndarray:
    """The log-probability [R] of one token of each row, of logits [R, V]."""
    return np.take_along_axis(log_softmax(logits), np.asarray(tokens)[:, None], axis=1)[:, 0]
