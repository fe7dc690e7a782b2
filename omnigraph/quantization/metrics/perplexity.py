"""Perplexity: how well logits predict tokens.

It is exp of the mean cross-entropy of a target token. Where DATA has ``labels`` [B, T], those are
the targets of the logits [B, T, V], and negative ones do not count. Where it has none, the target
of each position is the next one of the tokens that the logits are of: those of the decoder, where
there is one. Padding, by the mask of those tokens, does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec, mask_of
from omnigraph.quantization.confidence import upper_ratio
from omnigraph.quantization.metrics.metric import Example, Feeds, Loss, Metric

#: The array of DATA that is no input of the program.
LABELS = "labels"
#: Positions whose logits are worked on in float64 at a time.
_POSITIONS = 1024
#: float64 has no exp of more.
_MOST_NATS = 700.0


@dataclass(frozen=True, eq=False)
class Targets:
    """What logits are to predict in one example, and how well the model's do.

    Args:
        logits: the name of the output.
        tokens: [B, T] int64, -1 where nothing is to be predicted.
        nats: [B], the model's sum of cross-entropies of each row.
    """

    logits: str
    tokens: np.ndarray
    nats: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """[B], the targets of each row."""
        return (self.tokens >= 0).sum(axis=1)

    @property
    def rows(self) -> int:
        """How many rows have targets."""
        return int((self.counts > 0).sum())


class Perplexity(Metric[Targets]):
    """The growth of the perplexity, as a part of the model's.

    The upper end is that of the ratio of sums over rows, of nats and of tokens
    (`omnigraph.quantization.confidence.upper_ratio`).
    """

    name = "perplexity"
    expects = "logits [B, T, V], and DATA with labels or with tokens of real input"

    def known(self, example: Example, results: Feeds) -> Targets | None:
        """Targets, where something follows from the tokens and there are logits of each."""
        logits = logits_of(example.outputs)
        if not example.predicts or logits is None or results[logits.name].ndim != 3:
            return None
        found = results[logits.name]
        if (labels := example.data.get(LABELS)) is not None:
            tokens: np.ndarray | None = targets_of_labels(labels, found.shape)
        else:
            tokens = next_tokens(example.feeds, example.inputs, logits, found.shape[:2])
        if tokens is None or not (tokens >= 0).any():
            return None
        return Targets(logits.name, tokens, row_nats(found, tokens))

    def loss(self, known: Sequence[Targets], results: Iterable[Feeds]) -> Loss:
        """The growth of the perplexity, over all samples."""
        logits = (found[one.logits] for one, found in zip(known, results, strict=True))
        return growth(known, logits)


def growth(known: Sequence[Targets], logits: Iterable[np.ndarray]) -> Loss:
    """The growth of the perplexity of some targets.

    Args:
        logits: [B, T, V] of the program, for each example.
    """
    rows: list[tuple[int, float, float]] = []  # targets, and nats of the model and of the program
    for one, found in zip(known, logits, strict=True):
        nats = row_nats(found, one.tokens)
        rows += [row for row in zip(one.counts, one.nats, nats, strict=True) if row[0]]
    counts, model, found = np.array(rows, np.float64).T
    total = counts.sum()
    before, after = _exp(model.sum() / total), _exp(found.sum() / total)
    upper = _exp(upper_ratio(found - model, counts)) - 1
    return Loss(Perplexity.name, after / before - 1, upper, len(rows), before, after)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats <= _MOST_NATS else math.inf


def logits_of(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The output that is logits, if any."""
    return next((spec for spec in outputs if spec.role == "logits"), None)


def targets_of_labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels as targets: int64, -1 for each negative one.

    Args:
        labels: of the evaluation data: [B, T], or [B] where the logits are of whole samples.
        shape: of the logits: [B, T, V], or [B, V].

    Raises:
        UsageError: the labels are not of the shape of the logits, or are none of their classes.
    """
    if labels.shape != shape[:-1]:
        raise UsageError(
            "The labels of the evaluation data are not of the shape of the logits",
            expected=list(shape[:-1]),
            found=list(labels.shape),
            hint="one label for each row of logits; a negative one counts for nothing",
        )
    if labels.dtype.kind not in "iu" or (labels >= shape[-1]).any():
        raise UsageError(
            "The labels of the evaluation data are none of the classes of the logits",
            expected=f"integers below {shape[-1]}",
            found=f"{labels.dtype}, the greatest {labels.max()}",
            hint="a label is the place of its logit; a negative one counts for nothing",
        )
    return np.where(labels < 0, -1, labels).astype(np.int64)


def next_tokens(
    feeds: Feeds, inputs: Sequence[TensorSpec], logits: TensorSpec, shape: tuple[int, ...]
) -> np.ndarray | None:
    """The next token at each position of the logits, or None where none is known.

    Args:
        feeds: inputs by name.
        inputs: the program's, with their roles.
        logits: the program's output.
        shape: the batch and the positions of the logits, in this run.

    Returns:
        [B, T] int64, -1 where there is no next token, or padding.
    """
    tokens = [s for s in inputs if s.role == "tokens" and feeds[s.name].shape == shape]
    if not tokens:
        return None
    # Both sides of an encoder-decoder may be as long in this run: the dimensions tell them apart.
    own = next((spec for spec in tokens if spec.shape == logits.shape[:2]), tokens[-1])
    ids, mask = feeds[own.name], mask_of(own, inputs)
    following = np.full(ids.shape, -1, np.int64)
    following[:, :-1] = ids[:, 1:]
    if mask is not None and feeds[mask.name].shape == shape:
        shown = feeds[mask.name].astype(bool)
        following[:, :-1][~(shown[:, 1:] & shown[:, :-1])] = -1
    return following if (following >= 0).any() else None


def row_nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[B], the cross-entropy of each row, summed over its targets."""
    rows = zip(logits, targets, strict=True)
    return np.array([cross_entropy(row[None], given[None]) for row, given in rows])


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """The sum over all targets of the negative logarithm of their probability, in nats.

    Args:
        logits: [B, T, V] of any float dtype; computed on in float64.
        targets: [B, T] int64, below V; negative ones do not count.
    """
    counts = targets >= 0
    rows, counted = logits[counts], targets[counts]
    return sum(
        _nats(rows[start : start + _POSITIONS], counted[start : start + _POSITIONS])
        for start in range(0, len(counted), _POSITIONS)
    )


def _nats(logits: np.ndarray, targets: np.ndarray) -> float:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(wide, targets[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(wide).sum(axis=1)) - chosen).sum())
