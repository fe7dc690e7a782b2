"""How much worse a program is than the model: perplexity and agreement."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from token_samples import INPUTS, LOGITS, SEQUENCE, evaluated, shifted

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec
from omnigraph.quantization.evaluation import Evaluation, default_metrics, evaluation_of
from omnigraph.quantization.metrics.metric import Example
from omnigraph.quantization.metrics.perplexity import (
    cross_entropy,
    next_tokens,
    targets_of_labels,
)

RNG = np.random.default_rng(0)


def same(feeds):
    """A model that gives what it takes."""
    return {"y": feeds["x"]}


def plain(run, feeds, outputs=()) -> Evaluation:
    """The evaluation of a model that is not of tokens."""
    examples = [Example(one, one, (), outputs) for one in feeds]
    found = evaluation_of(run, examples, default_metrics(outputs))
    assert found is not None
    return found


def test_targets_are_labels_or_the_next_token():
    ids = np.array([[5, 6, 7, 8]])
    feeds = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0]])}
    assert next_tokens(feeds, INPUTS[:1], LOGITS, (1, 4)).tolist() == [[6, 7, 8, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 4)).tolist() == [[6, 7, -1, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 3)) is None
    labels = np.array([[1, -100, 2, 3]])
    assert targets_of_labels(labels, (1, 4, 9)).tolist() == [[1, -1, 2, 3]]
    with pytest.raises(UsageError, match="not of the shape"):
        targets_of_labels(labels[:, :3], (1, 4, 9))
    for wrong in (labels + 6, labels.astype(np.float32)):
        with pytest.raises(UsageError, match="none of the classes"):
            targets_of_labels(wrong, (1, 4, 9))


def test_targets_are_of_the_side_that_the_logits_are_of():
    encoder = TensorSpec("a", "int64", SEQUENCE, role="tokens")
    decoder = TensorSpec("b", "int64", ("batch", "decoder_sequence"), role="tokens")
    feeds = {"a": np.array([[1, 2, 3]]), "b": np.array([[5, 6, 7]])}
    for side, expected in ((encoder, [[2, 3, -1]]), (decoder, [[6, 7, -1]])):
        logits = TensorSpec("y", "float32", (*side.shape, 9), role="logits")
        for inputs in ((encoder, decoder), (decoder, encoder)):
            assert next_tokens(feeds, inputs, logits, (1, 3)).tolist() == expected


def test_labels_of_the_data_come_before_the_next_tokens():
    feeds = {"input_ids": np.array([[5, 6, 7, 8]])}
    labels = {"labels": np.array([[1, -100, 2, 3]])}
    (known,) = evaluated(shifted(0.0), feeds, data=labels).known
    assert known.tokens.tolist() == [[1, -1, 2, 3]]
    (known,) = evaluated(shifted(0.0), feeds).known
    assert known.tokens.tolist() == [[6, 7, 8, -1]]


def test_cross_entropy_is_torch_s():
    import torch

    logits = RNG.standard_normal((3, 700, 11)).astype(np.float32)
    targets = RNG.integers(-1, 11, (3, 700))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double().flatten(0, 1),
        torch.from_numpy(targets).flatten(),
        ignore_index=-1,
        reduction="sum",
    )
    assert cross_entropy(logits, targets) == pytest.approx(float(expected), rel=1e-9)


def test_the_loss_is_the_growth_of_the_perplexity():
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(20)]
    samples = evaluated(shifted(0.0), *feeds)
    unchanged = samples.loss(shifted(0.0))
    assert unchanged.relative == 0 and unchanged.upper == 0
    worse = samples.loss(shifted(0.1))
    model = -np.log(np.exp(3.0) / (np.exp(3.0) + 8))
    found = -np.log(np.exp(2.9) / (np.exp(2.9) + 8))
    assert worse.model == pytest.approx(np.exp(model))
    assert worse.relative == pytest.approx(np.exp(found - model) - 1, rel=1e-4)
    assert "perplexity" in str(worse)
    assert evaluation_of(shifted(0.0), [], default_metrics([LOGITS])) is None


def test_the_upper_end_of_a_loss_covers_what_other_samples_give():
    rng = np.random.default_rng(5)

    def noisy(feeds):
        found = shifted(0.0)(feeds)["logits"]
        noise = np.random.default_rng(int(feeds["input_ids"].sum())).normal(0, 0.5, found.shape)
        return {"logits": found + noise.astype(np.float32)}

    def draw(count: int):
        feeds = [{"input_ids": rng.integers(0, 9, (1, 25))} for _ in range(count)]
        return evaluated(shifted(0.0), *feeds)

    truth = draw(4000).loss(noisy).relative
    below = [draw(30).loss(noisy).upper >= truth for _ in range(100)]
    assert 88 <= sum(below) <= 99  # 95 of 100, as far as a hundred tries can tell


def test_programs_without_logits_are_judged_by_agreement():
    feeds = [{"x": RNG.standard_normal((2, 3))} for _ in range(4)]
    found = plain(same, feeds).loss(lambda f: {"y": f["x"] * 1.02})
    assert found.metric == "agreement"
    assert found.relative == pytest.approx(0.02) and found.upper == pytest.approx(0.02)


OUTPUTS = (TensorSpec("y", "float32", ("batch", 40)), TensorSpec("z", "float32", ("batch", 1)))


def test_the_upper_end_of_an_agreement_covers_what_other_samples_give():
    rng = np.random.default_rng(6)

    def draw(count: int):
        feeds = [{"x": rng.standard_normal((2, 40))} for _ in range(count)]
        return plain(of_model, feeds, OUTPUTS)

    def of_model(feeds):
        return {"y": feeds["x"], "z": feeds["x"][:, :1]}

    def noisy(feeds):
        noise = np.random.default_rng(zlib.crc32(feeds["x"].tobytes()))
        level = noise.uniform(0, 0.04, (2, 1))
        return {
            "y": feeds["x"] + level * noise.standard_normal((2, 40)),
            "z": feeds["x"][:, :1] * 1.001,
        }

    truth = draw(3000).loss(noisy).relative
    assert truth == pytest.approx(0.04 / np.sqrt(3), rel=0.05)
    below = [draw(10).loss(noisy).upper >= truth for _ in range(200)]
    assert 182 <= sum(below) <= 198  # 95 of 100


@pytest.mark.parametrize("outputs", [OUTPUTS[:1], ()])
def test_one_sample_says_nothing_of_others(outputs):
    feeds = {"x": RNG.standard_normal((1, 40))}
    one = plain(same, [feeds], outputs)
    for by in (1.0, 1.01):
        found = one.loss(lambda f, by=by: {"y": f["x"] * by})
        assert found.upper == np.inf and found.to_dict()["loss_upper"] is None
    one = evaluated(shifted(0.0), {"input_ids": RNG.integers(0, 9, (1, 30))})
    assert one.loss(shifted(0.1)).upper == np.inf


def test_rows_of_a_batch_are_samples():
    ids = RNG.integers(0, 9, (6, 30))
    ids[3] = ids[2]
    together = evaluated(shifted(0.0), {"input_ids": ids}).loss(shifted(0.1))
    apart = evaluated(shifted(0.0), *({"input_ids": row[None]} for row in ids))
    assert together == apart.loss(shifted(0.1)) and together.rows == 6


def test_samples_without_a_target_do_not_count_where_others_have_one():
    feeds = [{"input_ids": RNG.integers(0, 9, (1, length))} for length in (30, 1, 30)]
    samples = evaluated(shifted(0.0), *feeds)
    assert samples.feeds == (feeds[0], feeds[2])
    assert samples.loss(shifted(0.1)).metric == "perplexity"
    labels = {"labels": np.full((1, 30), -100)}
    for alone in (
        evaluated(shifted(0.0), feeds[1]),
        evaluated(shifted(0.0), feeds[0], data=labels),
    ):
        assert alone.metric.name == "agreement"


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_beyond_every_bound(wrong: float):
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(3)]
    samples = evaluated(shifted(0.0), *feeds)

    def broken(f):
        return {"logits": np.full((*f["input_ids"].shape, 9), wrong, np.float32)}

    with np.errstate(invalid="ignore"):
        assert not samples.loss(broken).upper <= 1e9
    ones = plain(same, [{"x": np.ones(3)}] * 2)
    assert ones.loss(lambda f: {"y": f["x"] * wrong}).upper == np.inf
    zero = plain(same, [{"x": np.zeros(3)}] * 2)
    assert zero.loss(lambda f: {"y": f["x"] + 1}).upper == np.inf
    assert zero.loss(same).upper == 0
