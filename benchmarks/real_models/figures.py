"""How well a quantized model does its task, beside the same model in float32."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.quantization_peers import Feeds

Arrays = Sequence[np.ndarray]
#: How many sentences a nearest neighbour is looked for among.
NEIGHBOURS = 400


def embedding_figures(found: Arrays, reference: Arrays, _: Sequence[Feeds]) -> dict[str, float]:
    """Of vectors [1, hidden]: cosine, and the share with the same nearest neighbour.

    Neighbours are looked for in sets of `NEIGHBOURS` sentences; the share is a mean over all sets.
    """
    vectors, others = _unit(np.concatenate(found)), _unit(np.concatenate(reference))
    same = []
    for start in range(0, len(vectors), NEIGHBOURS):
        part = slice(start, start + NEIGHBOURS)
        same.append(np.mean(_nearest(vectors[part]) == _nearest(others[part])))
    return {
        "cosine": float((vectors * others).sum(axis=1).mean()),
        "same neighbour": float(np.mean(same)),
    }


def _nearest(unit: np.ndarray) -> np.ndarray:
    alike = unit @ unit.T
    np.fill_diagonal(alike, -1)
    return alike.argmax(axis=1)


def state_figures(found: Arrays, reference: Arrays, frames: Sequence[int]) -> dict[str, float]:
    """Of states [1, frames, hidden]: the mean cosine of a frame, of those that have sound.

    Args:
        frames: how many frames have sound, at the beginning of each.
    """
    shown = [
        np.concatenate([states[0, :count] for states, count in zip(each, frames, strict=True)])
        for each in (found, reference)
    ]
    cosines = (_unit(shown[0]) * _unit(shown[1])).sum(axis=1)
    return {"cosine": float(cosines.mean()), "worst cosine": float(cosines.min())}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def label_figures(found: Arrays, reference: Arrays, _: Sequence[Feeds]) -> dict[str, float]:
    """Of logits [1, labels]: the share with the same label, and the relative error of logits."""
    logits, others = np.concatenate(found), np.concatenate(reference)
    same = logits.argmax(axis=1) == others.argmax(axis=1)
    error = np.linalg.norm(logits - others) / np.linalg.norm(others)
    return {"same label": float(same.mean()), "logits error": float(error)}


def token_figures(
    found: Arrays, reference: Arrays, feeds: Sequence[Feeds], *, ids: str, first: int = 0
) -> dict[str, float]:
    """Of logits [1, tokens, vocabulary]: the share with the same next token, and perplexities.

    Args:
        ids: the input with the tokens, [1, tokens]: logits are of the token after each.
        first: the first position whose next token counts.
    """
    same, nats, nats_before = [], [], []
    for logits, others, inputs in zip(found, reference, feeds, strict=True):
        ours, theirs = logits[0, first:-1], others[0, first:-1]
        same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        nats.append(_cross_entropies(ours, inputs[ids][0, first + 1 :]))
        nats_before.append(_cross_entropies(theirs, inputs[ids][0, first + 1 :]))
    mean, before = np.concatenate(nats).mean(), np.concatenate(nats_before).mean()
    return {
        "same next token": float(np.concatenate(same).mean()),
        "perplexity": math.exp(mean),
        "of fp32's": math.exp(mean - before),
    }


def _cross_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    total = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return total - wide[np.arange(len(targets)), targets]
