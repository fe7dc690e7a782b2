"""The loop: batches, streams, callbacks, log-probabilities and asyncio."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from fixed_decoder import Fixed, plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from omnigraph.errors import UsageError
from omnigraph.runtimes.generation.generate import _whole

# Batches and pieces ------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    chunk=st.sampled_from([None, 1, 3]),
    beams=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
)
def test_a_batch_gives_what_each_prompt_gives_alone(pair, lengths, chunk, beams, seed):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(4, 61, length).tolist() for length in lengths]
    fields = {"max_new_tokens": 8, "eos_token_id": [2, 30], "num_beams": beams}
    together = pair.session.generate(texts, prefill_chunk_size=chunk, **fields)
    for row, text in zip(together.new, texts, strict=True):
        assert row.tolist() == pair.session.generate([text], **fields).new[0].tolist()


def test_rows_that_have_ended_are_read_no_more():
    def scores(length: int) -> np.ndarray:
        return np.eye(9)[min(length, 8)]

    fixed = Fixed(2, scores)
    found = _whole(fixed, plan_of([[1, 1], [1, 1]], eos_token_id=4, max_new_tokens=6))
    assert found.ids.tolist() == [[1, 1, 2, 3, 4]] * 2
    assert fixed.fed == [[1, 1], [2, 2], [3, 3]]
    assert found.finish == ("eos", "eos") and found.lengths.tolist() == [3, 3]


def test_a_pad_id_may_be_none_of_the_vocabulary(pair):
    fields = {"max_new_tokens": 6, "pad_token_id": 99, "eos_token_id": list(range(2, 61, 4))}
    found = pair.session.generate([[5, 6, 7], [8]], log_probs=True, **fields)
    assert (
        found.ids[1].tolist()
        == [99, 99, 8, *found.new[1], *[99] * (6 - found.lengths[1])][: found.ids.shape[1]]
    )
    assert np.isfinite(found.log_probs[1, : found.lengths[1]]).all()


# Streams, callbacks, log-probabilities -----------------------------------------------------------


def test_a_stream_gives_the_same_tokens(pair, prompts):
    fields = {"max_new_tokens": 9, "eos_token_id": [2, 11, 17], "log_probs": True}
    whole, seen = pair.session.generate(prompts, **fields), []
    streamed = list(pair.session.generate(prompts, stream=True, on_token=seen.append, **fields))
    assert streamed == seen
    for row, tokens in enumerate(whole.new):
        mine = [token for token in streamed if token.row == row]
        assert [token.id for token in mine] == tokens.tolist()
        assert [token.finish for token in mine] == [""] * (len(mine) - 1) + [whole.finish[row]]
        np.testing.assert_array_equal(
            [token.log_prob for token in mine], whole.log_probs[row, : len(mine)]
        )


@pytest.mark.parametrize("beams", [1, 3])
def test_log_probabilities_are_the_models(pair, prompts, beams: int):
    found = pair.session.generate(
        prompts, max_new_tokens=7, num_beams=beams, log_probs=True, repetition_penalty=1.3
    )
    with torch.no_grad():
        logits = pair.model(torch.tensor(found.ids)).logits.log_softmax(-1).numpy()
    for row, (tokens, start) in enumerate(zip(found.new, [5] * 3, strict=True)):
        wanted = logits[row, start + np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(found.log_probs[row, : len(tokens)], wanted, atol=1e-4)
        assert np.isnan(found.log_probs[row, len(tokens) :]).all()


def test_the_score_of_a_beam_is_that_of_transformers(pair, prompts):
    fields = {"max_new_tokens": 7, "num_beams": 3, "length_penalty": 0.7, "eos_token_id": [2, 11]}
    found = pair.session.generate(prompts, **fields)
    with torch.no_grad():
        wanted = pair.model.generate(
            torch.tensor(prompts), return_dict_in_generate=True, output_scores=True, **fields
        )
    np.testing.assert_allclose(found.scores, wanted.sequences_scores.numpy(), rtol=1e-4)


def test_a_result_is_an_array_of_ids(pair, prompts):
    found = pair.session.generate(prompts[0], max_new_tokens=3)
    assert np.asarray(found).shape == (1, 9) and np.array(found).dtype == np.int64
    assert found.log_probs is None and found.scores is None


def test_beam_search_has_no_stream(pair, prompts):
    for more in ({"stream": True}, {"on_token": print}):
        with pytest.raises(UsageError, match="no token before it has all"):
            pair.session.generate(prompts, num_beams=2, **more)


# asyncio -----------------------------------------------------------------------------------------


def test_asyncio_gives_the_same_whole_and_streamed(pair, prompts):
    async def both() -> tuple[Any, list[Any]]:
        whole = await pair.session.agenerate(prompts, max_new_tokens=6)
        streamed = [
            token async for token in pair.session.agenerate(prompts, stream=True, max_new_tokens=6)
        ]
        return whole, streamed

    whole, streamed = asyncio.run(both())
    wanted = pair.session.generate(prompts, max_new_tokens=6)
    np.testing.assert_array_equal(whole.ids, wanted.ids)
    assert [t.id for t in streamed if t.row == 1] == wanted.new[1].tolist()


def test_a_task_that_is_cancelled_ends_the_generation(pair, prompts):
    steps = []

    def slow(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        steps.append(ids.shape[1])
        time.sleep(0.02)
        return scores

    async def cancelled() -> None:
        options = {"max_new_tokens": 80, "logits_processor": slow}
        task = asyncio.create_task(pair.session.agenerate(prompts, **options))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert 0 < len(steps) < 40


def test_several_threads_generate_at_a_time(pair, prompts):
    wanted = [pair.session.generate(prompts[[row]], max_new_tokens=9).ids for row in range(3)]
    with ThreadPoolExecutor(3) as pool:
        rows = [0, 1, 2] * 4
        found = pool.map(lambda r: pair.session.generate(prompts[[r]], max_new_tokens=9).ids, rows)
        for row, ids in zip(rows, found, strict=True):
            np.testing.assert_array_equal(ids, wanted[row])
