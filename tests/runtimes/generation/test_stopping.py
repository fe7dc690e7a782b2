"""What ends a row, how long one may be, and the requests that are refused."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from fixed_decoder import Fixed, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from omnigraph.errors import InputError, RunError, UsageError
from omnigraph.runtimes.generation.config import GenerationConfig
from omnigraph.runtimes.generation.generate import _tokens, _whole
from omnigraph.runtimes.generation.plan import Hooks, longest_of
from omnigraph.runtimes.generation.prompt import prompt_of
from omnigraph.runtimes.generation.stopping import StopStrings


def test_a_cancelled_generation_gives_what_it_has(pair, prompts):
    event, seen = threading.Event(), []

    def on_token(token: Any) -> None:
        seen.append(token)
        if len(seen) == 6:
            event.set()

    found = pair.session.generate(prompts, max_new_tokens=30, on_token=on_token, cancel=event)
    assert found.ids.shape == (3, 9)  # the callback comes after the second step's tokens
    assert found.finish == ("cancelled",) * 3
    beams = pair.session.generate(prompts, num_beams=2, max_new_tokens=30, cancel=lambda: True)
    assert beams.finish == ("cancelled",) * 3 and beams.ids.shape == (3, 7)


def test_a_time_ends_a_generation(pair, prompts):
    def slow(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return scores

    found = pair.session.generate(prompts, max_new_tokens=80, max_time=0.1, logits_processor=slow)
    assert found.finish == ("time",) * 3 and found.ids.shape[1] < 40


def test_a_callable_ends_rows(pair, prompts):
    def after(ids: np.ndarray) -> np.ndarray:
        return ids.shape[1] >= np.array([8, 9, 99])

    found = pair.session.generate(prompts, max_new_tokens=6, stopping_criteria=after)
    assert found.lengths.tolist() == [2, 3, 6]
    assert found.finish == ("stopping_criteria", "stopping_criteria", "length")


#: transformers reads each token after "abcdef", which must be a token for that.
WORDS = "<unk> st op stop opera sto pper _ x las topper s to pped abcdef".split()
WORDS[7] = " "


@pytest.fixture(scope="module")
def words() -> tokenizers.Tokenizer:
    numbers = {word: number for number, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, "<unk>"))
    made.decoder = tokenizers.decoders.Fuse()
    return made


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(1, len(WORDS) - 1), min_size=1, max_size=9))
def test_texts_end_rows_where_transformers_ends_them(words, ids: list[int]):
    texts = ["stop", "x s"]
    wanted = StopStringCriteria(PreTrainedTokenizerFast(tokenizer_object=words), texts)
    found = StopStrings(texts, words)(np.array([ids]))
    assert found.tolist() == wanted(torch.tensor([ids]), None).tolist()


def test_a_text_in_the_prompt_alone_ends_nothing(words):
    plan = plan_of(
        [[3, 8]], Hooks(tokenizer=words), stop_strings="stop", max_new_tokens=4, eos_token_id=13
    )
    scores = np.eye(len(WORDS))

    def next_of(length: int) -> np.ndarray:
        return scores[[0, 0, 7, 1, 2, 8][length]]

    found = _whole(Fixed(1, next_of), plan)
    assert found.new[0].tolist() == [7, 1, 2] and found.finish == ("stop_string",)


def test_a_text_needs_a_tokenizer(pair, prompts):
    with pytest.raises(UsageError, match="only if there is a tokenizer"):
        pair.session.generate(prompts, stop_strings="x")


# Lengths and refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "capacity", "longest"),
    [
        ({"max_new_tokens": 5}, None, 12),
        ({"max_new_tokens": 5, "max_length": 8}, None, 12),
        ({"max_length": 9}, None, 9),
        ({}, None, 27),
        ({}, 20, 20),
        ({}, 7, 8),
        ({"max_length": 99}, 20, 21),  # of the artifact, not asked for
        ({"max_new_tokens": 14}, 20, 21),
    ],
)
def test_the_longest_length(fields: dict[str, int], capacity: int | None, longest: int):
    assert longest_of(GenerationConfig(**fields), set(), 7, capacity) == longest


@pytest.mark.parametrize(
    ("fields", "capacity"), [({"max_new_tokens": 15}, 20), ({"max_length": 22}, 20), ({}, 6)]
)
def test_more_than_there_is_room_for_is_refused_before_it_begins(fields, capacity):
    with pytest.raises(InputError, match=f"at most {capacity + 1}, prompt and new ones together"):
        longest_of(GenerationConfig(**fields), set(fields), 7, capacity)


def test_a_length_that_the_prompt_has_already_is_refused(pair, prompts):
    with pytest.raises(UsageError, match="no room for a new token"):
        pair.session.generate(prompts, max_length=6)


def test_a_max_length_that_is_asked_for_goes_before_the_artifacts_number_of_new_ones(pair, prompts):
    config = {"max_new_tokens": 3}
    found = pair.session.generate(prompts, generation_config=config, max_length=8)
    assert found.ids.shape[1] == 8
    assert pair.session.generate(prompts, generation_config=config).ids.shape[1] == 9
    whole = GenerationConfig(max_new_tokens=3)
    assert pair.session.generate(prompts, generation_config=whole).ids.shape[1] == 9
    found = pair.session.generate(prompts, generation_config=whole, max_length=8)
    assert found.ids.shape[1] == 8


def test_a_length_without_end_takes_no_memory():
    fixed = Fixed(1, lambda length: np.eye(9)[length % 8 if length < 300 else 8])
    plan = plan_of([[1]], eos_token_id=8, max_new_tokens=10**12)
    assert _whole(fixed, plan).lengths.tolist() == [300]


def test_every_token_forbidden_and_numbers_that_are_none_are_refused():
    scores = np.zeros(5)
    with pytest.raises(UsageError, match="forbid every token"):
        _whole(Fixed(1, lambda _: scores), plan_of([[1]], suppress_tokens=[0, 1, 2, 3, 4]))
    with pytest.raises(RunError, match="are no numbers"):
        _whole(Fixed(1, lambda _: scores * np.nan), plan_of([[1]]))
    valid = plan_of([[1]], remove_invalid_values=True)
    assert len(list(_tokens(Fixed(1, lambda _: scores * np.nan), valid))) == 5


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[1.5]], None, "no array of token ids"),
        ([[[1]]], None, "no array of token ids"),
        ("text", None, "no array of token ids"),
        ([[1, 2], [3]], [[1, 1], [1, 1]], "unequal lengths"),
        ([[1, 2]], [[1]], "not of the shape"),
        ([[1, 2], [3, 4]], [[1, 1], [1, 0]], "padding after its tokens"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], "has no token"),
        ([[1], []], None, "has no token"),
    ],
)
def test_a_prompt_that_is_none_is_refused(ids: Any, mask: Any, message: str):
    with pytest.raises(InputError, match=message):
        prompt_of(ids, mask, GenerationConfig())


def test_an_empty_prompt_begins_with_the_token_that_begins_texts():
    assert prompt_of([[]], None, GenerationConfig(bos_token_id=4)).ids.tolist() == [[4]]


@pytest.mark.parametrize(
    "options", [{"seeds": 3}, {"seed": -1}, {"temprature": 0.5}, {"log_probs": 5}]
)
def test_a_parameter_that_there_is_not_is_refused(pair, prompts, options):
    with pytest.raises(UsageError):
        pair.session.generate(prompts, **options)
