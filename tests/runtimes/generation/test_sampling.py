"""How tokens are drawn: by the probabilities of transformers, and by a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fixed_decoder import plan_of
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig as TheirConfig

from omnigraph.runtimes.generation.beam_search import _drawn
from omnigraph.runtimes.generation.probabilities import softmax
from omnigraph.runtimes.generation.search import draw

DRAWS = 20_000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's statistic, over its expectation: about 1 for a right sampler."""
    likely = probabilities * counts.sum() >= 5
    expected = probabilities[likely] * counts.sum()
    return float(((counts[likely] - expected) ** 2 / expected).sum() / max(1, likely.sum() - 1))


CUTS: dict[str, dict[str, Any]] = {
    "all": {"top_k": 0},
    "hot": {"top_k": 0, "temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.8, "top_k": 0},
    "min_p": {"min_p": 0.1},
    "typical_p": {"typical_p": 0.7, "top_k": 12},
}


@pytest.mark.parametrize("name", CUTS)
def test_tokens_are_drawn_by_the_probabilities_of_transformers(name: str):
    scores = np.random.default_rng(3).standard_normal(40).astype(np.float32) * 2
    config = TheirConfig(do_sample=True, **CUTS[name])
    config._eos_token_tensor = None
    config.update(**TheirConfig._get_default_generation_params(), defaults_only=True)
    their_list = _their_processors(config)
    wanted = torch.softmax(their_list(torch.zeros(1, 1).long(), torch.tensor(scores[None])), -1)
    plan = plan_of([[1]], do_sample=True, **CUTS[name])
    processed = plan.processed(np.zeros((1, 1), np.int64), scores[None])[0]
    generator = np.random.default_rng(11)
    counts = np.bincount([draw(processed, generator) for _ in range(DRAWS)], minlength=40)
    probabilities = wanted[0].double().numpy()
    assert counts[probabilities == 0].sum() == 0
    assert chi_square(counts, probabilities) < 1.8


def _their_processors(config: TheirConfig) -> Any:
    from transformers.generation.utils import GenerationMixin

    class Model(GenerationMixin):
        class config:
            is_encoder_decoder = False

    return Model()._get_logits_processor(config, 1, torch.zeros(1, 1).long())


def test_a_wrong_sampler_would_be_seen():
    probabilities = softmax(np.random.default_rng(3).standard_normal(40) * 2)
    other = softmax(np.log(probabilities) / 1.05)
    counts = np.random.default_rng(0).multinomial(DRAWS, other)
    assert chi_square(counts, probabilities) > 1.8


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), kept=st.integers(1, 6))
def test_what_has_no_probability_is_never_drawn(seed: int, kept: int):
    rng = np.random.default_rng(seed)
    scores = np.full(50, -np.inf, np.float32)
    scores[rng.choice(50, kept, replace=False)] = rng.standard_normal(kept) * 30
    assert np.isfinite(scores[draw(scores, rng)])


def test_beams_are_drawn_without_replacement_as_often_as_they_should():
    total = np.log(np.array([[0.5, 0.25, 0.2, 0.05]])).astype(np.float32)
    plan = plan_of([[1]], do_sample=True)
    pairs = np.zeros((4, 4))
    for _ in range(DRAWS // 4):
        found = _drawn(total, 2, plan)[0]
        assert total[0, found[0]] >= total[0, found[1]]
        pairs[found[0], found[1]] += 1
    odds = np.exp(total[0])
    wanted = np.zeros((4, 4))
    for a in range(4):
        for b in range(4):
            if a != b:  # drawn in either order, and then sorted
                first, second = sorted((a, b), key=lambda i: -odds[i])
                wanted[first, second] += odds[a] * odds[b] / (1 - odds[a])
    assert chi_square(pairs.ravel(), wanted.ravel()) < 3


def test_a_seed_gives_the_same_tokens_in_a_batch_of_any_size(pair, prompts):
    fields = {"do_sample": True, "seed": 5, "max_new_tokens": 10, "eos_token_id": 2}
    alone = pair.session.generate(prompts[:1], **fields).new[0]
    many = pair.session.generate(prompts, **fields).new
    assert many[0].tolist() == alone.tolist()
    again = pair.session.generate(prompts, **fields).new
    assert [row.tolist() for row in again] == [row.tolist() for row in many]
    other = pair.session.generate(prompts, **{**fields, "seed": 6}).new
    assert [row.tolist() for row in other] != [row.tolist() for row in many]


def test_several_sequences_of_a_prompt_are_drawn_apart(pair, prompts):
    found = pair.session.generate(
        prompts, do_sample=True, num_return_sequences=3, seed=0, max_new_tokens=12
    )
    assert len(found) == 9
    np.testing.assert_array_equal(found.ids[:, :6], np.repeat(prompts, 3, axis=0))
    assert len({row.tobytes() for row in found.new}) == 9


def test_sampled_beams_end_and_are_sorted(pair, prompts):
    found = pair.session.generate(
        prompts, do_sample=True, num_beams=3, num_return_sequences=3, seed=0, eos_token_id=[2, 9]
    )
    scores = found.scores.reshape(3, 3)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert {"eos", "length"} >= set(found.finish)
