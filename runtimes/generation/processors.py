"""The processors that a `GenerationConfig` asks for, in the order of transformers 5."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.runtimes.generation.config import GenerationConfig
from omnigraph.runtimes.generation.constraints import (
    ForcedFirst,
    ForcedLast,
    LeastLength,
    NoPromptNgram,
    NoRepeatedNgram,
    SequenceBias,
    Suppressed,
    without_ends,
)
from omnigraph.runtimes.generation.penalties import (
    LengthDecay,
    PresencePenalty,
    PromptReward,
    RepetitionPenalty,
)
from omnigraph.runtimes.generation.probabilities import log_softmax
from omnigraph.runtimes.generation.truncation import (
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    Temperature,
    TopH,
    TopK,
    TopP,
    TypicalP,
)

#: Takes the ids so far [B, L] int64 and scores [B, V] float32, and gives new scores [B, V].
Processor: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ValidValues:
    """Puts 0 for NaN, and the largest numbers for infinities (``remove_invalid_values``)."""

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        most = float(np.finfo(np.float32).max)
        return np.nan_to_num(scores, nan=0.0, posinf=most, neginf=-most)


@dataclass(frozen=True)
class Normalized:
    """Makes logarithms of probabilities of the scores (``renormalize_logits``)."""

    def __call__(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return log_softmax(scores)


def processors(
    config: GenerationConfig,
    source: np.ndarray,
    shown: np.ndarray,
    longest: int,
    own: Sequence[Processor] = (),
) -> list[Processor]:
    """All processors of one request.

    Args:
        source: [B, S] int64, a row for each prompt: the prompts, or what an encoder read.
        shown: [R, P] bool, which positions are no padding, a row for each row of scores.
        longest: positions at most, prompt included.
        own: the caller's, which stand before what only sampling uses.

    Raises:
        UsageError: a parameter needs an end-of-sequence id, and there is none.
    """
    made = [*_always(config, source, shown, longest), *own]
    if config.do_sample:
        made += _of_sampling(config)
    return [*made, Normalized()] if config.renormalize_logits else made


def _always(
    config: GenerationConfig, source: np.ndarray, shown: np.ndarray, longest: int
) -> Iterator[Processor]:
    """What acts on greedy decoding, too."""
    length, eos = shown.shape[1], config.eos_token_id or ()
    if config.sequence_bias is not None:
        yield SequenceBias(dict(config.sequence_bias))
    if config.encoder_repetition_penalty != 1:
        repeats = len(shown) // len(source)
        yield PromptReward(config.encoder_repetition_penalty, np.repeat(source, repeats, axis=0))
    if config.repetition_penalty != 1:
        yield RepetitionPenalty(config.repetition_penalty, shown.argmax(axis=1))
    if config.presence_penalty or config.frequency_penalty:
        yield PresencePenalty(config.presence_penalty, config.frequency_penalty, length)
    if config.no_repeat_ngram_size:
        yield NoRepeatedNgram(config.no_repeat_ngram_size)
    if config.encoder_no_repeat_ngram_size:
        yield NoPromptNgram(config.encoder_no_repeat_ngram_size, source)
    if config.bad_words_ids is not None:
        yield SequenceBias(without_ends(config.bad_words_ids, eos))
    least = config.min_length
    if config.min_new_tokens is not None:
        least = config.min_new_tokens + length
    if eos and least:
        yield LeastLength(least, eos)
    if config.forced_bos_token_id is not None:
        yield ForcedFirst(config.forced_bos_token_id)
    if config.forced_eos_token_id is not None:
        yield ForcedLast(longest, config.forced_eos_token_id)
    if config.remove_invalid_values:
        yield ValidValues()
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        yield LengthDecay(length + start, factor, _needed(eos))
    if config.suppress_tokens is not None:
        yield Suppressed(config.suppress_tokens)
    if config.begin_suppress_tokens is not None:
        forced = length == 1 and config.forced_bos_token_id is not None
        yield Suppressed(config.begin_suppress_tokens, length + forced)


def _of_sampling(config: GenerationConfig) -> Iterator[Processor]:
    """What shapes the distribution that tokens are drawn from."""
    at_least = 1
    if config.num_beams > 1:  # a beam needs a token beside the ends
        at_least = len(config.eos_token_id) + 1 if config.eos_token_id else 2
    if config.temperature != 1:
        yield Temperature(config.temperature)
    if config.top_h is not None:
        yield TopH(config.top_h)
    if config.top_k:
        yield TopK(config.top_k, at_least)
    if config.top_p < 1:
        yield TopP(config.top_p, at_least)
    if config.min_p is not None:
        yield MinP(config.min_p, at_least)
    if config.typical_p < 1:
        yield TypicalP(config.typical_p, at_least)
    if config.epsilon_cutoff:
        yield EpsilonCutoff(config.epsilon_cutoff, at_least)
    if config.eta_cutoff:
        yield EtaCutoff(config.eta_cutoff, at_least)


def _needed(eos: tuple[int, ...]) -> tuple[int, ...]:
    if not eos:
        raise UsageError(
            "exponential_decay_length_penalty raises the score of the end, and there is no end",
            expected="eos_token_id",
            found="none",
            hint="pass eos_token_id=…, the id at which the model's texts end",
        )
    return eos
