"""Metrics of what logits choose: the greedy token of each position, and the class of a sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.contract.greedy_tokens import agreeing, greedy_reference
from omnigraph.contract.reference import Reference
from omnigraph.program import Case, TensorSpec
from omnigraph.quantization.confidence import upper_difference, upper_share
from omnigraph.quantization.metrics.metric import Example, Feeds, Loss, Metric
from omnigraph.quantization.metrics.perplexity import (
    LABELS,
    Perplexity,
    Targets,
    growth,
    logits_of,
    row_nats,
    targets_of_labels,
)


class NextToken(Metric[Targets]):
    """The share of tokens whose greedy choice is another than the model's, of those that are shown.

    The tokens are those that the contract counts (`omnigraph.contract.greedy_tokens`). The upper
    end is that of a share, of tokens that are alike within a row
    (`omnigraph.quantization.confidence.upper_share`). Alone, layers are ordered by how much less
    likely they make the model's own choices.
    """

    name = "next-token"
    expects = "logits [B, T, V] of tokens"
    ranked_by = f"{Perplexity.name} of the model's own choices"

    def known(self, example: Example, results: Feeds) -> Targets | None:
        """The model's greedy tokens."""
        reference = Reference(Case("evaluation", {}), example.feeds, results)
        found = greedy_reference(reference, example.inputs, example.outputs)
        if found is None:
            return None
        ((name, tokens),) = found.outputs.items()
        return Targets(name, tokens, row_nats(results[name], tokens)) if tokens.size else None

    def loss(self, known: Sequence[Targets], results: Iterable[Feeds]) -> Loss:
        """The share of other tokens; infinite where a logit is NaN."""
        logits = (found[one.logits] for one, found in zip(known, results, strict=True))
        return _others(self.name, known, logits)

    def ranking(self, known: Sequence[Targets], results: Iterable[Feeds]) -> Loss:
        """By the perplexity of the model's own choices."""
        return Perplexity().loss(known, results)

    def least(self, known: Sequence[Targets]) -> float:
        """What a share of none leaves open."""
        return _least([one.counts for one in known])


@dataclass(frozen=True, eq=False)
class Classes:
    """What the model chooses in one example.

    Args:
        choices: the class of each sample, or of each of its positions.
        labels: of the data, in the same places; None where it has none.
    """

    choices: Targets
    labels: np.ndarray | None

    @property
    def rows(self) -> int:
        """How many rows have choices that count."""
        return self.choices.rows

    def logits(self, found: Feeds) -> np.ndarray:
        """[B, T, K], or [B, 1, K] of whole samples."""
        return found[self.choices.logits].reshape(*self.choices.tokens.shape, -1)


class Accuracy(Metric[Classes]):
    """How much less often a classifier is right than the model; without labels, how often another.

    With ``labels`` [B] in DATA, or [B, T] for a class of each position, it is the model's accuracy
    minus the program's. Negative labels do not count. Without labels, it is the share of samples
    that get another class. Where some samples have labels, the others do not count.

    The upper end is that of a difference of shares that are counted on the same samples
    (`omnigraph.quantization.confidence.upper_difference`). Alone, layers are ordered by how much
    less likely they make the model's own choices.
    """

    name = "accuracy"
    expects = "scores of two classes or more: an output [B, K], or [B, T, K] with labels in DATA"
    ranked_by = f"{Perplexity.name} of the model's own choices"

    def known(self, example: Example, results: Feeds) -> Classes | None:
        """The model's classes, and the labels."""
        spec = _scores(example.outputs)
        if spec is None:
            return None
        scores, labels = results[spec.name], example.data.get(LABELS)
        if scores.shape[-1] < 2 or (scores.ndim == 3 and labels is None):
            return None
        targets = None if labels is None else targets_of_labels(labels, scores.shape)
        shape = (len(scores), -1)
        tokens = scores.argmax(axis=-1).astype(np.int64).reshape(shape)
        if targets is not None:
            targets = targets.reshape(shape)
            tokens = np.where(targets >= 0, tokens, -1)
        nats = row_nats(scores.reshape(*tokens.shape, -1), tokens)
        return Classes(Targets(spec.name, tokens, nats), targets)

    def loss(self, known: Sequence[Classes], results: Iterable[Feeds]) -> Loss:
        """The difference of accuracy, or the share of others; infinite where a score is NaN."""
        pairs = list(_counted(known, results))
        if pairs[0][0].labels is None:
            choices = [one.choices for one, _ in pairs]
            return _others(self.name, choices, (one.logits(found) for one, found in pairs))
        worse, better, counts, right = [], [], [], 0.0
        for one, found in pairs:
            assert one.labels is not None
            logits, counted = one.logits(found), one.labels >= 0
            if np.isnan(logits[counted]).any():
                return _no_number(self.name, sum(c.rows for c, _ in pairs))
            before = (one.choices.tokens == one.labels) & counted
            after = (logits.argmax(axis=-1) == one.labels) & counted
            worse.append((before & ~after).sum(axis=1))
            better.append((after & ~before).sum(axis=1))
            counts.append(counted.sum(axis=1))
            right += before.sum()
        total = np.concatenate(counts)
        kept = total > 0
        lost, won = np.concatenate(worse)[kept], np.concatenate(better)[kept]
        model = right / total.sum()
        relative = float((lost - won).sum() / total.sum())
        upper = upper_difference(lost, won, total[kept])
        return Loss(self.name, relative, upper, int(kept.sum()), model, model - relative)

    def ranking(self, known: Sequence[Classes], results: Iterable[Feeds]) -> Loss:
        """By the perplexity of the model's own choices."""
        pairs = list(_counted(known, results))
        logits = (one.logits(found) for one, found in pairs)
        return growth([one.choices for one, _ in pairs], logits)

    def least(self, known: Sequence[Classes]) -> float:
        """What no change leaves open."""
        return _least([one.choices.counts for one, _ in _counted(known, [{}] * len(known))])


def _counted(known: Sequence[Classes], results: Iterable[Feeds]) -> Iterator[tuple[Classes, Feeds]]:
    """The examples that count: those with labels, where there are any."""
    labelled = any(one.labels is not None for one in known)
    for one, found in zip(known, results, strict=True):
        if one.rows and (one.labels is not None or not labelled):
            yield one, found


def _scores(outputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The output that has a score for each class: logits, or floats [B, K] of no known role."""
    if (logits := logits_of(outputs)) is not None:
        return logits if len(logits.shape) in (2, 3) else None
    unknown = [s for s in outputs if not s.role and len(s.shape) == 2]
    floats = [spec for spec in unknown if np.dtype(spec.dtype).kind not in "iub"]
    return floats[0] if len(floats) == 1 else None


def _others(name: str, known: Sequence[Targets], logits: Iterable[np.ndarray]) -> Loss:
    """The share of choices that are others than the model's."""
    others, counts = [], []
    for one, found in zip(known, logits, strict=True):
        for row, tokens in zip(found, one.tokens, strict=True):
            if np.isnan(row[tokens >= 0]).any():
                return _no_number(name, sum(k.rows for k in known))
            same, total = agreeing(row[None], tokens[None])
            others.append(total - same)
            counts.append(total)
    parts, wholes = np.array(others, np.float64), np.array(counts, np.float64)
    kept = wholes > 0
    relative = float(parts.sum() / wholes.sum())
    return Loss(name, relative, upper_share(parts[kept], wholes[kept]), int(kept.sum()))


def _no_number(name: str, rows: int) -> Loss:
    """The loss of logits that are NaN, which choose nothing."""
    return Loss(name, math.inf, math.inf, rows)


def _least(counts: Sequence[np.ndarray]) -> float:
    wholes = np.concatenate(counts)
    wholes = wholes[wholes > 0]
    return upper_share(np.zeros(len(wholes)), wholes)
