"""How much worse a program is than the model: perplexity and agreement."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from token_samples import INPUTS, LOGITS, SEQUENCE, sample, shifted

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec
from omnigraph.quantization.evaluation import (
    cross_entropy,
    loss_of,
    next_tokens,
    sample_of,
    targets_of_labels,
)

RNG = np.random.default_rng(0)


def test_targets_are_labels_or_the_next_token():
    ids = np.array([[5, 6, 7, 8]])
    feeds = {"input_ids": ids, "attention_mask": np.array([[1, 1, 1, 0]])}
    assert next_tokens(feeds, INPUTS[:1], LOGITS, (1, 4)).tolist() == [[6, 7, 8, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 4)).tolist() == [[6, 7, -1, -1]]
    assert next_tokens(feeds, INPUTS, LOGITS, (1, 3)) is None
    labels = np.array([[1, -100, 2, 3]])
    assert targets_of_labels(labels, (1, 4)).tolist() == [[1, -1, 2, 3]]
    with pytest.raises(UsageError, match="labels"):
        targets_of_labels(labels[:, :3], (1, 4))


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
    assert sample(shifted(0.0), feeds, labels).targets.tolist() == [[1, -1, 2, 3]]
    assert sample(shifted(0.0), feeds).targets.tolist() == [[6, 7, 8, -1]]


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
    samples = [sample(shifted(0.0), f) for f in feeds]
    same = loss_of(shifted(0.0), samples)
    assert same.relative == 0 and same.upper == 0
    worse = loss_of(shifted(0.1), samples)
    model = -np.log(np.exp(3.0) / (np.exp(3.0) + 8))
    found = -np.log(np.exp(2.9) / (np.exp(2.9) + 8))
    assert worse.model == pytest.approx(np.exp(model))
    assert worse.relative == pytest.approx(np.exp(found - model) - 1, rel=1e-4)
    assert "perplexity" in str(worse)
    with pytest.raises(UsageError, match="no samples"):
        loss_of(shifted(0.0), [])


def test_the_upper_end_of_a_loss_covers_what_other_samples_give():
    rng = np.random.default_rng(5)

    def noisy(feeds):
        found = shifted(0.0)(feeds)["logits"]
        noise = np.random.default_rng(int(feeds["input_ids"].sum())).normal(0, 0.5, found.shape)
        return {"logits": found + noise.astype(np.float32)}

    def draw(count: int):
        feeds = [{"input_ids": rng.integers(0, 9, (1, 25))} for _ in range(count)]
        return [sample(shifted(0.0), f) for f in feeds]

    truth = loss_of(noisy, draw(4000)).relative
    below = [loss_of(noisy, draw(30)).upper >= truth for _ in range(100)]
    assert 88 <= sum(below) <= 99  # 95 of 100, as far as a hundred tries can tell


def test_programs_without_logits_are_judged_by_agreement():
    feeds = [{"x": RNG.standard_normal((2, 3))} for _ in range(4)]
    samples = [sample_of(lambda f: {"y": f["x"]}, f, f, (), ()) for f in feeds]
    found = loss_of(lambda f: {"y": f["x"] * 1.02}, samples)
    assert found.relative == pytest.approx(0.02) and found.upper == pytest.approx(0.02)


OUTPUTS = (TensorSpec("y", "float32", ("batch", 40)), TensorSpec("z", "float32", ("batch", 1)))


def test_the_upper_end_of_an_agreement_covers_what_other_samples_give():
    rng = np.random.default_rng(6)

    def draw(count: int):
        feeds = [{"x": rng.standard_normal((2, 40))} for _ in range(count)]
        return [sample_of(of_model, f, f, (), OUTPUTS) for f in feeds]

    def of_model(feeds):
        return {"y": feeds["x"], "z": feeds["x"][:, :1]}

    def noisy(feeds):
        noise = np.random.default_rng(zlib.crc32(feeds["x"].tobytes()))
        level = noise.uniform(0, 0.04, (2, 1))
        return {
            "y": feeds["x"] + level * noise.standard_normal((2, 40)),
            "z": feeds["x"][:, :1] * 1.001,
        }

    truth = loss_of(noisy, draw(3000)).relative
    assert truth == pytest.approx(0.04 / np.sqrt(3), rel=0.05)
    below = [loss_of(noisy, draw(10)).upper >= truth for _ in range(200)]
    assert 182 <= sum(below) <= 198  # 95 of 100


@pytest.mark.parametrize("outputs", [OUTPUTS[:1], ()])
def test_one_sample_says_nothing_of_others(outputs):
    feeds = {"x": RNG.standard_normal((1, 40))}
    one = [sample_of(lambda f: {"y": f["x"]}, feeds, feeds, (), outputs)]
    for by in (1.0, 1.01):
        found = loss_of(lambda f, by=by: {"y": f["x"] * by}, one)
        assert found.upper == np.inf and found.to_dict()["loss_upper"] is None
    one = [sample(shifted(0.0), {"input_ids": RNG.integers(0, 9, (1, 30))})]
    assert loss_of(shifted(0.1), one).upper == np.inf


def test_rows_of_a_batch_are_samples():
    ids = RNG.integers(0, 9, (6, 30))
    ids[3] = ids[2]
    together = loss_of(shifted(0.1), [sample(shifted(0.0), {"input_ids": ids})])
    apart = [sample(shifted(0.0), {"input_ids": row[None]}) for row in ids]
    assert together == loss_of(shifted(0.1), apart) and together.rows == 6


def test_samples_without_a_target_do_not_count_where_others_have_one():
    feeds = [{"input_ids": RNG.integers(0, 9, (1, length))} for length in (30, 1, 30)]
    samples = [sample(shifted(0.0), f) for f in feeds]
    assert samples[1].targets is None
    assert loss_of(shifted(0.1), samples) == loss_of(shifted(0.1), samples[::2])
    labels = {"labels": np.full((1, 30), -100)}
    assert sample(shifted(0.0), feeds[0], labels).targets is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_beyond_every_bound(wrong: float):
    feeds = [{"input_ids": RNG.integers(0, 9, (1, 30))} for _ in range(3)]
    samples = [sample(shifted(0.0), f) for f in feeds]

    def broken(f):
        return {"logits": np.full((*f["input_ids"].shape, 9), wrong, np.float32)}

    with np.errstate(invalid="ignore"):
        assert not loss_of(broken, samples).upper <= 1e9
    plain = [sample_of(lambda f: {"y": f["x"]}, f, f, (), ()) for f in ({"x": np.ones(3)},) * 2]
    assert loss_of(lambda f: {"y": f["x"] * wrong}, plain).upper == np.inf
    zero = [sample_of(lambda f: {"y": f["x"]}, f, f, (), ()) for f in ({"x": np.zeros(3)},) * 2]
    assert loss_of(lambda f: {"y": f["x"] + 1}, zero).upper == np.inf
    assert loss_of(lambda f: {"y": f["x"]}, zero).upper == 0
