"""How much worse a compiled program is than the model: by perplexity, or by agreement.

Perplexity is exp of the mean cross-entropy of a target token. Where DATA has ``labels`` [B, T],
those are the targets of the logits [B, T, V], and negative ones do not count. Where it has none,
the target of each position is the next one of the tokens that the logits are of: those of the
decoder, where there is one. Padding, by the mask of those tokens, does not count. A program without
logits is judged by agreement: the root mean square of its outputs' differences from the model's,
relative to the outputs' own. A sample without any target counts only where no sample has one.

Each row of a batch is a sample of its own, by which the upper end of the loss is estimated
(`omnigraph.quantization.confidence`). Rows count as independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec, mask_of
from omnigraph.quantization.confidence import upper_ratio

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

#: The array of DATA that is no input of the program.
LABELS = "labels"
#: Positions whose logits are worked on in float64 at a time.
_POSITIONS = 1024
#: float64 has no exp of more.
_MOST_NATS = 700.0


@dataclass(frozen=True, eq=False)
class Sample:
    """One evaluation input, and the model's loss or outputs on it.

    Args:
        feeds: inputs by name.
        targets: [B, T] int64, what the logits are to predict, -1 where nothing is; or None.
        nats: [B], the model's sum of cross-entropies of the targets of each row.
        outputs: the model's, by name, where there are no targets.
        logits: the name of the output that predicts the targets.
        rows: how many samples this is: B, or 1 where an output has no batch axis.
    """

    feeds: Feeds
    targets: np.ndarray | None
    nats: np.ndarray
    outputs: Mapping[str, np.ndarray]
    logits: str = ""
    rows: int = 1


@dataclass(frozen=True)
class Loss:
    """How much worse than the model.

    Args:
        measure: "perplexity" or "agreement".
        model: the model's perplexity; 0 for agreement.
        found: the perplexity found, or the relative error.
        upper: the upper end of ``relative``: 95 of 100 sets of such samples give less. Infinite
            where it is not known, as for a single sample.
        rows: how many samples it was measured on.
    """

    measure: str
    model: float
    found: float
    upper: float = math.inf
    rows: int = 1

    @property
    def relative(self) -> float:
        """The growth of the perplexity, or the error, as a part of one: 0.005 is 0.5%."""
        return self.found / self.model - 1 if self.measure == "perplexity" else self.found

    def __str__(self) -> str:
        if self.measure == "perplexity":
            text = f"perplexity {self.found:.4f} for {self.model:.4f}, {self.relative:+.3%}"
        else:
            text = f"outputs differ by {self.found:.3%}"
        return f"{text} ({upper_text(self.to_dict()['loss_upper'])})"

    def to_dict(self) -> dict[str, Any]:
        """The loss as JSON-ready fields; an upper end that is not known is None."""
        return {
            "measure": self.measure,
            "model": self.model,
            "found": self.found,
            "loss": self.relative,
            "loss_upper": self.upper if math.isfinite(self.upper) else None,
            "samples": self.rows,
        }


def upper_text(upper: float | None) -> str:
    """The upper end of a loss for a person; None is not known."""
    if upper is None:
        return "how much more other samples lose is not known"
    return f"below {upper:+.3%} at 95 of 100"


def sample_of(
    run: Run,
    feeds: Feeds,
    given: Feeds,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    *,
    predicts: bool = True,
) -> Sample:
    """An evaluation sample, by what the model gives.

    Args:
        run: the model.
        feeds: what the program takes.
        given: what the evaluation data hold, perhaps with ``labels``.
        inputs: the program's, with their roles.
        outputs: the program's, with their roles.
        predicts: whether tokens follow from those before, so that logits can predict them; random
            ones do not.

    Raises:
        UsageError: ``labels`` are not of the shape of the logits.
    """
    found = run(feeds)
    logits = next((spec for spec in outputs if spec.role == "logits"), None)
    if predicts and logits is not None and found[logits.name].ndim == 3:
        shape = found[logits.name].shape[:2]
        if (labels := given.get(LABELS)) is not None:
            targets: np.ndarray | None = targets_of_labels(labels, shape)
        else:
            targets = next_tokens(feeds, inputs, logits, shape)
        if targets is not None and (targets >= 0).any():
            nats = _row_nats(found[logits.name], targets)
            return Sample(feeds, targets, nats, {}, logits.name, len(targets))
    by_row = bool(outputs) and all(spec.shape[:1] == ("batch",) for spec in outputs)
    rows = len(found[outputs[0].name]) if by_row else 1
    return Sample(feeds, None, np.zeros(rows), dict(found), rows=rows)


def targets_of_labels(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels [B, T] as targets: int64, -1 for each negative one.

    Args:
        labels: of the evaluation data.
        shape: the batch and the positions of the logits.

    Raises:
        UsageError: the labels are not of that shape.
    """
    if labels.shape != shape:
        raise UsageError(
            "The labels of the evaluation data are not of the shape of the logits",
            expected=list(shape),
            found=list(labels.shape),
            hint="one label for each position; a negative one counts for nothing",
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


def loss_of(run: Run, samples: Sequence[Sample]) -> Loss:
    """Run a program on an evaluation set, and compare it with the model.

    Args:
        run: the program: inputs by name to outputs by name.

    Raises:
        UsageError: the set is empty.
    """
    if not samples:
        raise UsageError("The evaluation data has no samples", hint="see --evaluation DATA")
    judged = [sample for sample in samples if sample.targets is not None]
    return _perplexity(run, judged) if judged else _agreement(run, samples)


def _perplexity(run: Run, samples: Sequence[Sample]) -> Loss:
    """The growth of the perplexity, over all samples."""
    rows: list[tuple[int, float, float]] = []  # targets, and nats of the model and of the program
    for sample in samples:
        assert sample.targets is not None
        nats = _row_nats(run(sample.feeds)[sample.logits], sample.targets)
        counts = (sample.targets >= 0).sum(axis=1)
        rows += [row for row in zip(counts, sample.nats, nats, strict=True) if row[0]]
    counts, model, found = np.array(rows, np.float64).T
    total = counts.sum()
    return Loss(
        "perplexity",
        _exp(model.sum() / total),
        _exp(found.sum() / total),
        _exp(upper_ratio(found - model, counts)) - 1,
        len(rows),
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats <= _MOST_NATS else math.inf


def _row_nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
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


def _agreement(run: Run, samples: Sequence[Sample]) -> Loss:
    """The largest relative error of an output, over all samples.

    Its upper end is the largest of the outputs': that of the worst output is among them.
    """
    squares: dict[str, list[np.ndarray]] = {}
    sizes: dict[str, list[np.ndarray]] = {}
    for sample in samples:
        results = run(sample.feeds)
        for name, reference in sample.outputs.items():
            error = results[name].astype(np.float64) - reference
            squares.setdefault(name, []).append(_row_squares(error, sample.rows))
            sizes.setdefault(name, []).append(_row_squares(reference, sample.rows))
    worst = Loss("agreement", 0.0, 0.0, 0.0)
    for name in squares:
        found = _relative_error(np.concatenate(squares[name]), np.concatenate(sizes[name]))
        worst = Loss(
            "agreement", 0.0, max(worst.found, found[0]), max(worst.upper, found[1]), found[2]
        )
    return worst


def _row_squares(array: np.ndarray, rows: int) -> np.ndarray:
    """[rows], the sum of the squares of each."""
    return np.square(array, dtype=np.float64).reshape(rows, -1).sum(axis=1)


def _relative_error(squares: np.ndarray, sizes: np.ndarray) -> tuple[float, float, int]:
    """The relative error of an output, its upper end, and the rows that they were found on.

    Infinite where the program gives NaN, or gives something where the model gives only zeros.
    """
    if not np.isfinite(squares.sum()) or (not sizes.sum() and squares.sum()):
        return math.inf, math.inf, len(squares)
    if not sizes.sum():
        return 0.0, 0.0 if len(squares) > 1 else math.inf, len(squares)
    upper = upper_ratio(squares, sizes)
    return math.sqrt(squares.sum() / sizes.sum()), math.sqrt(max(upper, 0.0)), len(squares)
