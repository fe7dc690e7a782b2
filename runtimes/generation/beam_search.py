"""Beam search, step for step that of transformers 5 (``GenerationMixin._beam_search``).

For each prompt, K beams go on: the K best continuations of all of them together. Twice as many are
looked at, or more where there are several ends, so that K remain if others end. Finished texts are
compared by the sum of their log-probabilities divided by a power of their length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from omnigraph.runtimes.generation.config import GenerationConfig
from omnigraph.runtimes.generation.decoder import Decoder, prefill
from omnigraph.runtimes.generation.plan import Plan
from omnigraph.runtimes.generation.probabilities import greatest, log_softmax
from omnigraph.runtimes.generation.result import Generation
from omnigraph.runtimes.generation.search import check_choice
from omnigraph.runtimes.generation.stopping import CANCELLED, REASONS

#: A score that is no score: transformers adds it where a beam must not be chosen.
_NONE = np.float32(-1e9)


@dataclass
class _Beams:
    """Texts of each prompt: K of them, or all that are looked at.

    Args:
        ids: [B, K, L] int64.
        scores: [B, K] float32.
        log_probs: [B, K, N] float32, of the model, of each new token.
        sources: [B, K], the beam that each came from, within its prompt.
        lengths: [B, K], how many new tokens each has.
        reasons: [B, K] int8, why each ended; 0 where it has not.
    """

    ids: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray
    sources: np.ndarray
    lengths: np.ndarray
    reasons: np.ndarray

    @property
    def finished(self) -> np.ndarray:
        """Which have ended, [B, K] bool."""
        return self.reasons != 0

    def take(self, beams: np.ndarray) -> _Beams:
        """Those of each prompt that are numbered [B, K']."""
        rows = np.arange(len(beams))[:, None]
        return _Beams(*(array[rows, beams] for array in self._arrays()))

    def joined(self, other: _Beams) -> _Beams:
        """These, and then those."""
        pairs = zip(self._arrays(), other._arrays(), strict=True)
        return _Beams(*(np.concatenate(pair, axis=1) for pair in pairs))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.ids, self.scores, self.log_probs, self.sources, self.lengths, self.reasons


def beam_search(decoder: Decoder, plan: Plan) -> Generation:
    """Find the best texts of each prompt.

    Args:
        decoder: with a row for each prompt, that has read nothing.

    Raises:
        RunError: the model gave NaN, or failed.
        UsageError: the parameters forbid every token.
    """
    config, prompt = plan.config, plan.prompt
    batch, length = prompt.ids.shape
    count, start = config.num_beams, length
    copies = np.repeat(np.arange(batch), count)
    logits = prefill(decoder, prompt, config.prefill_chunk_size)[copies]
    decoder.reorder(copies)
    running, finished = _begin(plan), _begin(plan)
    running.scores[:, 0] = 0  # all beams are the same at first: only one goes on
    improvable = np.ones((batch, 1), bool)
    while True:
        candidates = _candidates(plan, running, logits, length)
        cancelled = plan.hooks.cancelled()
        _mark(plan, candidates, length, cancelled)
        hits = candidates.finished
        going_on = replace(candidates, scores=candidates.scores + hits * _NONE)
        running = going_on.take(greatest(going_on.scores, count))
        finished = _finish(config, finished, candidates, improvable, length + 1 - start)
        length += 1
        improvable = improvable & _may_improve(
            config, running, finished, length - start, plan.longest - start
        )
        full = finished.finished.all() and config.early_stopping is True
        if cancelled or not improvable.any() or full or hits.all():
            return _result(plan, finished)
        rows = (running.sources + np.arange(batch)[:, None] * count).reshape(-1)
        decoder.reorder(rows)
        logits = decoder.feed(running.ids[:, :, length - 1].reshape(-1, 1))


def _begin(plan: Plan) -> _Beams:
    """Beams that hold the prompt, with no score."""
    config, prompt = plan.config, plan.prompt
    batch, length = prompt.ids.shape
    shape = (batch, config.num_beams)
    ids = np.full((*shape, plan.longest), config.pad, np.int64)
    ids[:, :, :length] = prompt.ids[:, None]
    return _Beams(
        ids,
        np.full(shape, _NONE),
        np.full((*shape, plan.longest - length), np.nan, np.float32),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int64),
        np.zeros(shape, np.int8),
    )


def _candidates(plan: Plan, running: _Beams, logits: np.ndarray, length: int) -> _Beams:
    """The best continuations of all beams of each prompt, or some drawn by their probability."""
    config = plan.config
    batch, count = running.scores.shape
    raw = log_softmax(logits)
    flat = running.ids[:, :, :length].reshape(batch * count, length)
    scores = plan.processed(flat, raw).reshape(batch, count, -1)
    check_choice(scores.reshape(batch, -1))
    vocabulary = scores.shape[2]
    total = (scores + running.scores[:, :, None]).reshape(batch, -1)
    looked_at = max(2, 1 + len(config.eos_token_id or ())) * count
    chosen = _drawn(total, looked_at, plan) if config.do_sample else greatest(total, looked_at)
    beams, tokens = np.divmod(chosen, vocabulary)
    found = running.take(beams)
    found.scores = np.take_along_axis(total, chosen, axis=1)
    found.ids[:, :, length] = tokens
    new = length - plan.prompt.ids.shape[1]
    raw = raw.reshape(batch, count, vocabulary)
    found.log_probs[:, :, new] = raw[np.arange(batch)[:, None], beams, tokens]
    found.sources, found.lengths = beams, np.full_like(beams, new + 1)
    return found


def _drawn(total: np.ndarray, count: int, plan: Plan) -> np.ndarray:
    """Candidates [B, K] drawn without replacement by the softmax of scores [B, N], best first.

    The greatest of the scores with Gumbel noise are such a draw (Kool et al. 2019, section 2.2).
    """
    generators = plan.generators[: len(total)]
    noise = np.stack([generator.gumbel(size=total.shape[1]) for generator in generators])
    drawn = greatest(total + noise, count)
    order = np.argsort(-np.take_along_axis(total, drawn, axis=1), axis=1, kind="stable")
    return np.take_along_axis(drawn, order, axis=1)


def _mark(plan: Plan, candidates: _Beams, length: int, cancelled: bool) -> None:
    """Say of each candidate whether it has ended, and why."""
    batch, count = candidates.scores.shape
    ids = candidates.ids[:, :, : length + 1].reshape(batch * count, length + 1)
    reasons = plan.stopping(ids).reshape(batch, count)
    if cancelled:
        reasons[reasons == 0] = CANCELLED
    candidates.reasons = reasons


def _finish(
    config: GenerationConfig,
    finished: _Beams,
    candidates: _Beams,
    improvable: np.ndarray,
    new_length: int,
) -> _Beams:
    """The best finished texts: those before, and those of the best candidates that end now."""
    count = config.num_beams
    ends_now = candidates.finished & (np.arange(candidates.scores.shape[1]) < count)
    full = finished.finished.all(axis=1, keepdims=True) & (config.early_stopping is True)
    scores = candidates.scores / np.float32(new_length**config.length_penalty)
    scores = scores + full * _NONE + ~improvable * _NONE + ~ends_now * _NONE
    reasons = np.where(ends_now, candidates.reasons, np.int8(0))
    merged = finished.joined(replace(candidates, scores=scores, reasons=reasons))
    return merged.take(greatest(merged.scores, count))


def _may_improve(
    config: GenerationConfig, running: _Beams, finished: _Beams, now: int, most: int
) -> np.ndarray:
    """Whether the best running beam of a prompt may yet be better than its worst finished, [B, 1].

    Args:
        now: new tokens so far.
        most: new tokens at most.
    """
    penalty = config.length_penalty
    length = most if config.early_stopping == "never" and penalty > 0 else now
    best = running.scores[:, :1] / np.float32(length**penalty)
    worst = np.where(finished.finished, finished.scores.min(axis=1, keepdims=True), _NONE)
    return np.any(best > worst, axis=1, keepdims=True)


def _result(plan: Plan, finished: _Beams) -> Generation:
    returned, start = plan.config.num_return_sequences, plan.prompt.ids.shape[1]
    flat = [array[:, :returned].reshape(-1, *array.shape[2:]) for array in finished._arrays()]
    ids, scores, log_probs, _, lengths, reasons = flat
    most = int(lengths.max())
    return Generation(
        ids[:, : start + most],
        start,
        lengths,
        tuple(REASONS[reason] for reason in reasons),
        log_probs[:, :most] if plan.hooks.log_probs else None,
        scores,
    )
