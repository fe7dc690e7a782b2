"""``Session.generate`` against transformers' own, token for token, with shared weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers.*")

NEW = {"max_new_tokens": 14}
#: Ids that end texts: none, some that these models like, and a quarter of all.
ENDS = {"none": None, "several": [2, 17, 18, 37, 57], "many": list(range(2, 61, 4))}
PROCESSORS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "repetition_penalty": {"repetition_penalty": 1.4},
    "a reward for repetition": {"repetition_penalty": 0.7},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[4], [9], [12, 13], [40, 41]]},
    "sequence_bias": {"sequence_bias": [[[5], 4.0], [[5, 6], 9.0], [[7], -5.0]]},
    "min_length": {"min_length": 12},
    "min_new_tokens": {"min_new_tokens": 9},
    "forced_eos_token_id": {"forced_eos_token_id": [2, 3]},
    "suppress_tokens": {"suppress_tokens": list(range(5, 40))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(5, 40))},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.6)},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True, "repetition_penalty": 1.2},
    "max_length": {"max_length": 11, "max_new_tokens": None},
    "no length": {"max_new_tokens": None},
    "several": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4},
}


def padded(ids: np.ndarray, mask: np.ndarray, pad: int = 3) -> np.ndarray:
    return np.where(mask == 1, ids, pad)


def check_same(pair, ids, mask=None, **fields: Any) -> None:
    wanted = pair.theirs(ids, mask, **fields)
    found = pair.ours(ids, mask, **fields)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("ends", ["several", "many"])
def test_greedy_tokens_are_those_of_transformers(pair, prompts, name: str, ends: str):
    fields = {**NEW, "eos_token_id": ENDS[ends], "pad_token_id": 3, **PROCESSORS[name]}
    check_same(pair, prompts, **fields)


@pytest.mark.parametrize("name", PROCESSORS)
def test_greedy_tokens_after_padding_are_those_of_transformers(pair, prompts, mask, name: str):
    fields = {**NEW, "eos_token_id": ENDS["several"], "pad_token_id": 3, **PROCESSORS[name]}
    check_same(pair, padded(prompts, mask), mask, **fields)


def test_padding_is_known_by_its_id(pair, prompts, mask):
    check_same(pair, padded(prompts, mask, 0), pad_token_id=0, eos_token_id=2, **NEW)


def test_a_prompt_of_one_token_may_be_forced(pair):
    check_same(pair, [[7], [9]], forced_bos_token_id=5, begin_suppress_tokens=[8, 9], **NEW)


def test_a_longest_length_of_the_model_ends_the_default(pair):
    ids = np.random.default_rng(1).integers(3, 61, (2, 90))
    wanted = pair.theirs(ids, eos_token_id=[2, 60])
    found = pair.ours(ids, eos_token_id=[2, 60])
    if pair.folder.name == "llama":  # rotary positions end nowhere: 20 tokens, as asked
        found = found[:, : wanted.shape[1]]
    np.testing.assert_array_equal(found, wanted)


def test_the_texts_of_these_tests_end_at_many_lengths(pair, prompts):
    found = [
        pair.session.generate(prompts, eos_token_id=ENDS[ends], num_beams=beams, **NEW)
        for ends in ("several", "many")
        for beams in (1, 4)
    ]
    assert len({length for each in found for length in each.lengths.tolist()}) >= 4
    assert {reason for each in found for reason in each.finish} == {"eos", "length"}


BEAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "until all have ended": {"early_stopping": True},
    "until none can be better": {"early_stopping": "never"},
    "long texts": {"length_penalty": 2.0, "early_stopping": "never"},
    "short texts": {"length_penalty": -1.0},
    "no penalty": {"length_penalty": 0.0, "early_stopping": True},
    "all returned": {"num_return_sequences": 4},
    "two returned": {"num_return_sequences": 2, "early_stopping": True},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[4], [12, 13]], "min_new_tokens": 3},
    "a forced end": {"forced_eos_token_id": 2},
    "renormalized": {"renormalize_logits": True, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("name", BEAMS)
@pytest.mark.parametrize("ends", ENDS)
def test_beams_are_those_of_transformers(pair, prompts, name: str, ends: str):
    fields = {"eos_token_id": ENDS[ends], "pad_token_id": 3, "num_beams": 4, **NEW, **BEAMS[name]}
    if ends == "none":
        pair.model.generation_config.eos_token_id = None
        pair.model.generation_config.pad_token_id = 3
    try:
        check_same(pair, prompts, **fields)
    finally:
        pair.model.generation_config.eos_token_id = 2
        pair.model.generation_config.pad_token_id = 0


@pytest.mark.parametrize("name", ["plain", "until all have ended", "all returned", "penalties"])
def test_beams_after_padding_are_those_of_transformers(pair, prompts, mask, name: str):
    fields = {"eos_token_id": ENDS["several"], "pad_token_id": 3, "num_beams": 4}
    check_same(pair, padded(prompts, mask), mask, **fields, **NEW, **BEAMS[name])


def test_a_pad_id_within_a_prompt_is_no_token(pair, prompts):
    ids = prompts.copy()
    ids[0, 2] = ids[1, :3] = ids[1, 4] = 3
    check_same(pair, ids, eos_token_id=2, pad_token_id=3, **NEW)


IDS = st.lists(st.integers(4, 60), min_size=1, max_size=8, unique=True)


@settings(max_examples=40, deadline=None)
@given(
    num_beams=st.sampled_from([1, 1, 2, 5]),
    early_stopping=st.sampled_from([True, False, "never"]),
    length_penalty=st.sampled_from([-1.5, 0.0, 0.5, 1.0, 2.5]),
    eos_token_id=IDS,
    max_new_tokens=st.integers(1, 16),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.5]),
    no_repeat_ngram_size=st.integers(0, 3),
    min_new_tokens=st.sampled_from([None, 0, 5]),
    suppress_tokens=st.none() | IDS,
    begin_suppress_tokens=st.none() | IDS,
    bad_words_ids=st.none() | st.lists(IDS, min_size=1, max_size=3, unique_by=tuple),
    renormalize_logits=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_parameters_give_the_tokens_of_transformers(pair, seed: int, **fields: Any):
    rng = np.random.default_rng(seed)
    ids, shown = rng.integers(4, 61, (2, 5)), np.ones((2, 5), np.int64)
    shown[1, : rng.integers(0, 5)] = 0
    given_ = {name: value for name, value in fields.items() if value is not None}
    check_same(pair, padded(ids, shown), shown, pad_token_id=3, **given_)
