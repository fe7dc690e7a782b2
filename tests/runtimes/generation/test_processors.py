"""Each processor against the class of transformers that it follows, on scores with -inf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig as TheirConfig
from transformers.generation import logits_process as theirs
from transformers.generation.utils import GenerationMixin

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
from omnigraph.runtimes.generation.processors import Normalized, ValidValues, processors
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

VOCABULARY, LONGEST = 120, 9
PROMPT = np.array([[5, 6, 5, 6, 7], [0, 0, 9, 8, 9]])
FIRST = np.array([0, 2])
BIASES = {(3,): 2.5, (6, 5): -4.0, (8, 9, 11): 10.0, (9,): -np.inf, (7, 5): 1.0, (7, 6): 3.0}
WORDS = [[3], [6, 5], [1], [9, 8, 4]]

Made = Callable[[], Any]
CASES: dict[str, tuple[Made, Made]] = {
    "temperature": (lambda: Temperature(0.7), lambda: theirs.TemperatureLogitsWarper(0.7)),
    "top_k": (lambda: TopK(7), lambda: theirs.TopKLogitsWarper(7)),
    "top_k of more than there are": (lambda: TopK(500), lambda: theirs.TopKLogitsWarper(500)),
    "top_k of 1, 3 kept": (
        lambda: TopK(1, 3),
        lambda: theirs.TopKLogitsWarper(1, min_tokens_to_keep=3),
    ),
    "top_p": (lambda: TopP(0.6), lambda: theirs.TopPLogitsWarper(0.6)),
    "top_p of 0, 2 kept": (
        lambda: TopP(0.0, 2),
        lambda: theirs.TopPLogitsWarper(0.0, min_tokens_to_keep=2),
    ),
    "top_h": (lambda: TopH(0.4), lambda: theirs.TopHLogitsWarper(0.4)),
    "min_p": (lambda: MinP(0.2), lambda: theirs.MinPLogitsWarper(0.2)),
    "min_p of 1, 4 kept": (
        lambda: MinP(1.0, 4),
        lambda: theirs.MinPLogitsWarper(1.0, min_tokens_to_keep=4),
    ),
    "typical_p": (lambda: TypicalP(0.5), lambda: theirs.TypicalLogitsWarper(0.5)),
    "typical_p, 6 kept": (
        lambda: TypicalP(0.1, 6),
        lambda: theirs.TypicalLogitsWarper(0.1, min_tokens_to_keep=6),
    ),
    "epsilon_cutoff": (lambda: EpsilonCutoff(0.02), lambda: theirs.EpsilonLogitsWarper(0.02)),
    "epsilon_cutoff of much": (
        lambda: EpsilonCutoff(0.9, 2),
        lambda: theirs.EpsilonLogitsWarper(0.9, min_tokens_to_keep=2),
    ),
    "eta_cutoff": (lambda: EtaCutoff(0.1), lambda: theirs.EtaLogitsWarper(0.1)),
    "repetition_penalty": (
        lambda: RepetitionPenalty(1.7),
        lambda: theirs.RepetitionPenaltyLogitsProcessor(1.7),
    ),
    "repetition_penalty after padding": (
        lambda: RepetitionPenalty(0.6, FIRST),
        lambda: theirs.RepetitionPenaltyLogitsProcessor(
            0.6, prompt_ignore_length=torch.tensor(FIRST)
        ),
    ),
    "encoder_repetition_penalty": (
        lambda: PromptReward(1.7, PROMPT),
        lambda: theirs.EncoderRepetitionPenaltyLogitsProcessor(1.7, torch.tensor(PROMPT)),
    ),
    "no_repeat_ngram_size of 1": (
        lambda: NoRepeatedNgram(1),
        lambda: theirs.NoRepeatNGramLogitsProcessor(1),
    ),
    "no_repeat_ngram_size of 2": (
        lambda: NoRepeatedNgram(2),
        lambda: theirs.NoRepeatNGramLogitsProcessor(2),
    ),
    "no_repeat_ngram_size of 30": (
        lambda: NoRepeatedNgram(30),
        lambda: theirs.NoRepeatNGramLogitsProcessor(30),
    ),
    "encoder_no_repeat_ngram_size": (
        lambda: NoPromptNgram(2, PROMPT),
        lambda: theirs.EncoderNoRepeatNGramLogitsProcessor(2, torch.tensor(PROMPT)),
    ),
    "bad_words_ids": (
        lambda: SequenceBias(without_ends([tuple(word) for word in WORDS], (1, 2))),
        lambda: theirs.NoBadWordsLogitsProcessor(WORDS, [1, 2]),
    ),
    "sequence_bias": (
        lambda: SequenceBias(BIASES),
        lambda: theirs.SequenceBiasLogitsProcessor(BIASES),
    ),
    "min_length": (
        lambda: LeastLength(7, (1, 2)),
        lambda: theirs.MinLengthLogitsProcessor(7, [1, 2]),
    ),
    "min_new_tokens": (
        lambda: LeastLength(5 + 2, (1,)),
        lambda: theirs.MinNewTokensLengthLogitsProcessor(5, 2, 1),
    ),
    "forced_bos_token_id": (
        lambda: ForcedFirst(4),
        lambda: theirs.ForcedBOSTokenLogitsProcessor(4),
    ),
    "forced_eos_token_id": (
        lambda: ForcedLast(LONGEST, (1, 2)),
        lambda: theirs.ForcedEOSTokenLogitsProcessor(LONGEST, [1, 2]),
    ),
    "exponential_decay_length_penalty": (
        lambda: LengthDecay(5 + 1, 1.5, (1, 2)),
        lambda: theirs.ExponentialDecayLengthPenalty((1, 1.5), [1, 2], 5),
    ),
    "suppress_tokens": (
        lambda: Suppressed((3, 4)),
        lambda: theirs.SuppressTokensLogitsProcessor([3, 4]),
    ),
    "begin_suppress_tokens": (
        lambda: Suppressed((3, 4), 5),
        lambda: theirs.SuppressTokensAtBeginLogitsProcessor([3, 4], 5),
    ),
    "renormalize_logits": (Normalized, theirs.LogitNormalization),
    "remove_invalid_values": (ValidValues, theirs.InfNanRemoveLogitsProcessor),
}


def scores_of(seed: int, hidden: float = 0.3, spread: float = 2.0) -> np.ndarray:
    """Scores [2, V] float32 of which a part is -inf."""
    rng = np.random.default_rng(seed)
    scores = (rng.standard_normal((2, VOCABULARY)) * spread).astype(np.float32)
    scores[rng.random(scores.shape) < hidden] = -np.inf
    scores[:, rng.integers(VOCABULARY)] = 3.0
    return scores


def ids_of(seed: int, length: int) -> np.ndarray:
    """Ids [2, length] that begin with the prompt, of few different tokens."""
    rng = np.random.default_rng(seed)
    more = rng.integers(1, 12, (2, max(0, length - PROMPT.shape[1])))
    return np.concatenate([PROMPT, more], axis=1)[:, :length]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 2, 5, 6, 8, 12])
def test_a_processor_gives_the_scores_of_transformers(name: str, length: int):
    ours, other = (make() for make in CASES[name])
    for seed in range(4):
        for hidden in (0.0, 0.3, 0.97):
            scores, ids = scores_of(seed, hidden), ids_of(seed, length)
            before = scores.copy()
            found = ours(ids, scores)
            wanted = other(torch.tensor(ids), torch.tensor(scores)).numpy()
            assert found.dtype == np.float32
            np.testing.assert_array_equal(np.isneginf(found), np.isneginf(wanted))
            np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
            np.testing.assert_array_equal(scores, before)  # what was given is not changed


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(["top_k", "top_p", "top_h", "min_p", "typical_p", "eta_cutoff"]),
    share=st.floats(0.01, 0.99),
    keep=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    hidden=st.sampled_from([0.0, 0.5, 0.95]),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
)
def test_a_cut_keeps_the_tokens_that_transformers_keeps(name, share, keep, seed, hidden, spread):
    scores = scores_of(seed, hidden, spread)
    ids = np.zeros((2, 1), np.int64)
    count = 1 + int(share * 40)
    ours, other = {
        "top_k": lambda: (TopK(count, keep), theirs.TopKLogitsWarper(count, -np.inf, keep)),
        "top_p": lambda: (TopP(share, keep), theirs.TopPLogitsWarper(share, -np.inf, keep)),
        "top_h": lambda: (TopH(share), theirs.TopHLogitsWarper(share)),
        "min_p": lambda: (MinP(share, keep), theirs.MinPLogitsWarper(share, -np.inf, keep)),
        "typical_p": lambda: (
            TypicalP(share, keep),
            theirs.TypicalLogitsWarper(share, -np.inf, keep),
        ),
        "eta_cutoff": lambda: (
            EtaCutoff(share, keep),
            theirs.EtaLogitsWarper(share, -np.inf, keep),
        ),
    }[name]()
    found, wanted = ours(ids, scores), other(torch.tensor(ids), torch.tensor(scores)).numpy()
    np.testing.assert_array_equal(found, wanted)


ORDERED = {
    "do_sample": True,
    "temperature": 1.3,
    "top_k": 30,
    "top_p": 0.9,
    "min_p": 0.01,
    "typical_p": 0.95,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "top_h": 0.9,
    "repetition_penalty": 1.3,
    "encoder_repetition_penalty": 0.8,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 4,
    "bad_words_ids": [[4], [5, 6]],
    "min_new_tokens": 2,
    "suppress_tokens": [7],
    "begin_suppress_tokens": [8],
    "sequence_bias": [[[9], 2.0], [[5, 10], -3.0]],
    "exponential_decay_length_penalty": (1, 1.2),
    "remove_invalid_values": False,
    "renormalize_logits": True,
    "eos_token_id": [1, 2],
    "forced_eos_token_id": 2,
}


class _Model(GenerationMixin):
    """What transformers needs of a model to make its list of processors."""

    class config:
        is_encoder_decoder = False


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("length", [5, 6, 7, 8])
def test_all_together_act_in_the_order_of_transformers(beams: int, length: int):
    fields = {**ORDERED, "num_beams": beams}
    config = TheirConfig(**fields, max_length=LONGEST)
    config._eos_token_tensor = torch.tensor([1, 2])
    made = _Model()._get_logits_processor(config, PROMPT.shape[1], torch.tensor(PROMPT))
    shown = np.ones(PROMPT.shape, bool)
    ours = processors(GenerationConfig.from_dict(fields), PROMPT, shown, LONGEST)
    scores, ids = scores_of(length, hidden=0.1), ids_of(length, length)
    wanted = made(torch.tensor(ids), torch.tensor(scores)).numpy()
    for processor in ours:
        scores = processor(ids, scores)
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(wanted))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)


def test_presence_and_frequency_are_of_generated_tokens_alone():
    scores = np.zeros((1, 8), np.float32)
    ids = np.array([[5, 5, 2, 3, 3, 3]])  # a prompt of two, then 2, 3, 3, 3
    found = PresencePenalty(0.5, 0.25, 2)(ids, scores)
    np.testing.assert_array_equal(found, [[0, 0, -0.75, -1.25, 0, 0, 0, 0]])


def test_a_callers_processor_stands_before_what_samples():
    def own(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores

    config = GenerationConfig(do_sample=True, temperature=0.5, min_length=9, eos_token_id=1)
    made = processors(config, PROMPT, np.ones((2, 5), bool), LONGEST, [own])
    assert [own if each is own else type(each) for each in made] == [
        LeastLength,
        own,
        Temperature,
        TopK,
    ]


def test_greedy_decoding_has_nothing_that_shapes_a_distribution():
    config = GenerationConfig(temperature=0.5, top_p=0.5)
    assert processors(config, PROMPT, np.ones((2, 5), bool), LONGEST) == []


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bad_words_ids": [[500]]}, "bad_words_ids"),
        ({"forced_eos_token_id": 500}, "to be forced"),
    ],
)
def test_a_token_beyond_the_vocabulary_is_refused(fields: dict[str, Any], named: str):
    made = processors(GenerationConfig.from_dict(fields), PROMPT, np.ones((2, 5), bool), 6)
    with pytest.raises(UsageError, match=named):
        made[0](PROMPT, scores_of(0))


def test_a_decay_needs_an_end():
    config = GenerationConfig(exponential_decay_length_penalty=(1, 1.5))
    with pytest.raises(UsageError, match="there is no end"):
        processors(config, PROMPT, np.ones((2, 5), bool), LONGEST)
