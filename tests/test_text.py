"""The text models: their data, their loss and their training."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.text.checkpoints import FOLDERS, in_storage, load  # noqa: E402
from benchmarks.text.corpus import SPLITS, files, split_of, text  # noqa: E402
from benchmarks.text.data import (  # noqa: E402
    BOS,
    EOS,
    IGNORED,
    LENGTH,
    MASK,
    PAD,
    VOCABULARY,
    damage,
    held_out,
    training_batch,
)
from benchmarks.text.loss import perplexity, run_module  # noqa: E402
from benchmarks.text.train import Training, fit, model_config, observe  # noqa: E402
from omnigraph.models import OmniNet  # noqa: E402


def test_parts_are_disjoint_and_depend_on_the_path_alone():
    found = {split: set(files(split)) for split in SPLITS}
    for one in SPLITS:
        assert found[one] and text(one).size > 100_000
        for other in SPLITS:
            assert one == other or not found[one] & found[other]
    # What was trained on must stay trained on: these are by the paths alone.
    assert [split_of(p) for p in ("json/decoder.py", "test/test_json.py", "ast.py")] == [
        split_of("json/decoder.py"),
        "train",
        split_of("ast.py"),
    ]
    assert split_of("site-packages/torch/nn.py") is None


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_batches_are_the_same_every_time(kind: str):
    for one, other in zip(held_out(kind, "test"), held_out(kind, "test"), strict=True):
        assert all(np.array_equal(one.feeds[name], other.feeds[name]) for name in one.feeds)
        assert all(a.shape[1] == LENGTH and a.max() < VOCABULARY for a in one.feeds.values())
    first, second = (training_batch(kind, step, batch=2) for step in (1, 2))
    assert not np.array_equal(first.targets, second.targets)


def test_the_decoder_is_asked_for_what_comes_next():
    batch = held_out("decoder", "test", windows=3)[0]
    ids = batch.feeds["input_ids"]
    assert (ids[:, 0] == BOS).all() and np.array_equal(ids[:, 1:], batch.targets[:, :-1])


def test_the_encoder_sees_a_damaged_text_and_the_decoder_restores_it():
    batch = held_out("encoder-decoder", "test", windows=8, batch=8)[0]
    feeds, targets = batch.feeds, batch.targets
    counts = (targets != IGNORED).sum(axis=1)
    assert np.array_equal(feeds["decoder_attention_mask"].sum(axis=1), counts)
    for row, count in enumerate(counts):
        assert targets[row, count - 1] == EOS
        assert (feeds["decoder_input_ids"][row, count:] == PAD).all()
        assert np.array_equal(feeds["decoder_input_ids"][row, 1:count], targets[row, : count - 1])
    shown = feeds["attention_mask"].astype(bool)
    assert (feeds["input_ids"][~shown] == PAD).all() and (feeds["input_ids"] == MASK).any()


def test_damage_hides_spans_and_leaves_the_rest_in_order():
    windows = np.tile(np.arange(255, dtype=np.uint8), (64, 1))
    ids, mask = damage(windows, np.full(64, 255), np.random.default_rng(0))
    for row, shown in zip(ids, mask.astype(bool), strict=True):
        bytes_ = row[shown & (row < 256)]
        # Bytes that were not swapped stand in their order: most steps go up.
        assert (np.diff(bytes_) > 0).mean() > 0.8
        assert 0 < (row[shown] == MASK).sum() < 60
    assert mask.sum() < 0.95 * mask.size


def test_perplexity_is_that_of_torch():
    batches = held_out("encoder-decoder", "test", windows=4, batch=2)
    rng = np.random.default_rng(0)
    logits = [
        rng.standard_normal((*b.targets.shape, VOCABULARY)).astype(np.float32) for b in batches
    ]
    waiting = list(logits)
    found = perplexity(lambda feeds: {"logits": waiting.pop(0)}, batches)
    losses = [
        torch.nn.functional.cross_entropy(
            torch.from_numpy(one).double().flatten(0, 1),
            torch.from_numpy(batch.targets).flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )[batch.targets.reshape(-1) != IGNORED]
        for one, batch in zip(logits, batches, strict=True)
    ]
    assert found == pytest.approx(math.exp(torch.cat(losses).mean()))
    with pytest.raises(ValueError, match="no"):
        perplexity(lambda feeds: {}, [])


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_a_few_steps_of_training_with_and_without_quantization(kind: str):
    model = OmniNet.from_seed(model_config(kind, hidden=32, layers=1), 0)
    training = Training(steps=12, batch=4, rate=5e-3, warmup=2)
    record = fit(model, training)
    losses = [loss for _, loss in record["losses"]]
    assert losses[-1] < losses[0] - 0.5
    observe(model, "uint8", training)
    again = fit(model, Training(steps=4, batch=4, rate=1e-4, warmup=1))
    assert again["losses"][-1][1] < losses[0] - 0.5


@pytest.mark.parametrize(("kind", "bound"), [("decoder", 3.0), ("encoder-decoder", 2.2)])
def test_the_trained_models_have_learned(kind: str, bound: float):
    """A byte of Python has about 24 guesses by its frequency alone, and these are well below."""
    batches = held_out(kind, "test", windows=48, batch=16)
    assert perplexity(run_module(load(kind)), batches) < bound
    assert sum(p.stat().st_size for p in FOLDERS[kind].iterdir()) < 5e6


def test_training_with_quantization_lost_nothing():
    batches = held_out("decoder", "test", windows=96, batch=16)
    base, rounded = (perplexity(run_module(load(k)), batches) for k in ("decoder", "decoder-qat"))
    assert rounded < base * 1.002


def test_what_is_stored_is_the_model(tmp_path: Path):
    model = load("decoder-qat")
    in_storage(model).save(tmp_path)
    again = load(tmp_path)
    for (name, one), other in zip(
        again.named_parameters(), load("decoder-qat").parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_the_script_says_what_it_takes():
    command = [sys.executable, "-m", "benchmarks.text.train", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "--qat" in told and "--start" in told
