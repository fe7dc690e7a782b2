"""Batches of bytes: the next byte for a decoder, a damaged text restored for an encoder-decoder.

A token is a byte or one of four specials. All windows are `LENGTH` tokens, so that shapes are
static in training and the same batches can be given to every runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.text.corpus import text

KINDS = ("decoder", "encoder-decoder")
PAD, BOS, EOS, MASK = 256, 257, 258, 259
#: 256 bytes and the specials, rounded up to a multiple of 8.
VOCABULARY = 264
LENGTH = 256
#: The target of a position that counts for nothing.
IGNORED = -1

#: What is done to a text: spans are hidden, each behind one MASK, which leaves their length to be
#: guessed (Raffel et al. 2020, section 3.1.4, with twice the share hidden), and bytes are swapped.
_SPAN_RATE, _SPAN_MEAN, _SWAP_RATE = 0.07, 5.0, 0.05
_LEAST_LENGTH = 64


@dataclass(frozen=True)
class Batch:
    """Inputs by name, as the program ``forward`` of an OmniNet takes them, and what to predict.

    ``input_ids`` and ``attention_mask`` are [N, T] int64; of an encoder-decoder there are
    ``decoder_input_ids`` and ``decoder_attention_mask``, [N, T] int64, too. ``targets`` is [N, T]
    int64: what follows each (decoder) input, `IGNORED` where that is padding.
    """

    feeds: dict[str, np.ndarray]
    targets: np.ndarray


def held_out(kind: str, split: str, *, windows: int = 128, batch: int = 16) -> list[Batch]:
    """Batches of a part of the text, the same ones in every call.

    Args:
        kind: "decoder" or "encoder-decoder".
        split: "calibration", "evaluation" or "test" (or "train", to see what was learned by heart).
        windows: how many, spread evenly over the part; fewer where it is too short for so many.
        batch: N, windows in each batch; the last one may have fewer.
    """
    source = text(split)
    windows = min(windows, len(source) // (LENGTH + 1))
    starts = np.linspace(0, len(source) - LENGTH - 1, windows).astype(np.int64)
    rng = np.random.default_rng(0)
    return [_batch(kind, source, starts[i : i + batch], rng) for i in range(0, windows, batch)]


def training_batch(kind: str, step: int, *, batch: int, seed: int = 0) -> Batch:
    """Windows from anywhere in the text to train on; they depend on ``seed`` and ``step`` alone."""
    rng = np.random.default_rng([seed, step])
    source = text("train")
    return _batch(kind, source, rng.integers(0, len(source) - LENGTH, batch), rng)


def _batch(kind: str, source: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> Batch:
    if kind == "decoder":
        return next_byte(source[starts[:, None] + np.arange(LENGTH)])
    if kind == "encoder-decoder":
        windows = source[starts[:, None] + np.arange(LENGTH - 1)]
        lengths = rng.integers(_LEAST_LENGTH, LENGTH, len(starts))
        return restoration(windows, lengths, rng)
    raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found {kind!r}")


def next_byte(windows: np.ndarray) -> Batch:
    """Bytes [N, T] -> BOS and all but the last as inputs, the bytes as targets."""
    targets = windows.astype(np.int64)
    ids = np.concatenate((np.full_like(targets[:, :1], BOS), targets[:, :-1]), axis=1)
    return Batch({"input_ids": ids, "attention_mask": np.ones_like(ids)}, targets)


def restoration(windows: np.ndarray, lengths: np.ndarray, rng: np.random.Generator) -> Batch:
    """Texts, damaged for the encoder and whole for the decoder.

    Args:
        windows: [N, T - 1] uint8, bytes.
        lengths: [N], how many bytes of each row are its text.
    """
    ids, mask = damage(windows, lengths, rng)
    place = np.arange(windows.shape[1] + 1)
    end = lengths[:, None]
    padded = np.pad(windows.astype(np.int64), ((0, 0), (0, 1)))  # [N, T]
    targets = np.where(place < end, padded, np.where(place == end, EOS, IGNORED))
    shifted = np.concatenate((np.full_like(targets[:, :1], BOS), targets[:, :-1]), axis=1)
    shown = place <= end
    feeds = {
        "input_ids": ids,
        "attention_mask": mask,
        "decoder_input_ids": np.where(shown, shifted, PAD),
        "decoder_attention_mask": shown.astype(np.int64),
    }
    return Batch(feeds, targets)


def damage(
    windows: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Hide spans and swap bytes: [N, T - 1] uint8 -> token ids and their mask, [N, T] int64."""
    shape, place = windows.shape, np.arange(windows.shape[1])
    begins = rng.random(shape) < _SPAN_RATE
    reach = np.where(begins, place + rng.geometric(1 / _SPAN_MEAN, shape), 0)
    hidden = np.maximum.accumulate(reach, axis=1) > place
    first = hidden.copy()
    first[:, 1:] &= ~hidden[:, :-1]
    swapped = rng.random(shape) < _SWAP_RATE
    ids = np.where(swapped, rng.integers(32, 127, shape), windows)
    ids = np.where(first, MASK, ids)
    kept = (~hidden | first) & (place < lengths[:, None])
    order = np.argsort(~kept, axis=1, kind="stable")
    left = np.arange(shape[1] + 1) < kept.sum(axis=1, keepdims=True)
    moved = np.pad(np.take_along_axis(ids, order, axis=1), ((0, 0), (0, 1)))
    return np.where(left, moved, PAD), left.astype(np.int64)
