"""How much worse a compiled program is than the model: by perplexity, or by agreement.

Perplexity is exp of the mean cross-entropy of a target token. Where DATA has ``labels`` [B, T],
those are the targets of the logits [B, T, V], and negative ones do not count. Where it has none,
the target of each position is the next one of the tokens that the logits are of: those of the
decoder, where there is one. Padding, by the mask of those tokens, does not count. A program without
logits is judged by agreement: the root mean square of its outputs' differences from the model's,
relative to the outputs' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec, mask_of

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

#: The array of DATA that is no input of the program.
_LABELS = "labels"
#: Positions whose logits are worked on in float64 at a time.
_POSITIONS = 1024
#: Standard errors above the mean: 5 of 100 results are higher.
_ONE_SIDED = 1.645


@dataclass(frozen=True, eq=False)
class Sample:
    """One evaluation input, and the model's loss or outputs on it.

    Args:
        feeds: inputs by name.
        targets: [B, T] int64, what the logits are to predict, -1 where nothing is; or None.
        nats: the model's sum of cross-entropies of the targets.
        outputs: the model's, by name, where there are no targets.
        logits: the name of the output that predicts the targets.
    """

    feeds: Feeds
    targets: np.ndarray | None
    nats: float
    outputs: Mapping[str, np.ndarray]
    logits: str = ""

    @property
    def count(self) -> int:
        """How many targets there are."""
        return 0 if self.targets is None else int((self.targets >= 0).sum())


@dataclass(frozen=True)
class Loss:
    """How much worse than the model.

    Args:
        measure: "perplexity" or "agreement".
        model: the model's perplexity; 0 for agreement.
        found: the perplexity found, or the relative error.
        doubt: the standard error of ``relative``, by how it differs from sample to sample.
    """

    measure: str
    model: float
    found: float
    doubt: float = 0.0

    @property
    def relative(self) -> float:
        """The growth of the perplexity, or the error, as a part of one: 0.005 is 0.5%."""
        return self.found / self.model - 1 if self.measure == "perplexity" else self.found

    @property
    def upper(self) -> float:
        """The upper end of ``relative``: 95 of 100 sets of such samples give less."""
        return self.relative + _ONE_SIDED * self.doubt

    def __str__(self) -> str:
        if self.measure == "perplexity":
            return f"perplexity {self.found:.4f} for {self.model:.4f}, {self.relative:+.3%}"
        return f"outputs differ by {self.found:.3%}"


def sample_of(
    run: Run,
    feeds: Feeds,
    given: Feeds,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Sample:
    """An evaluation sample, by what the model gives.

    Args:
        run: the model.
        feeds: what the program takes.
        given: what the evaluation data hold, perhaps with ``labels``.
        inputs: the program's, with their roles.
        outputs: the program's, with their roles.

    Raises:
        UsageError: ``labels`` are not of the shape of the logits.
    """
    found = run(feeds)
    logits = next((spec for spec in outputs if spec.role == "logits"), None)
    if logits is not None and found[logits.name].ndim == 3:
        shape = found[logits.name].shape[:2]
        if (labels := given.get(_LABELS)) is not None:
            targets: np.ndarray | None = targets_of_labels(labels, shape)
        else:
            targets = next_tokens(feeds, inputs, logits, shape)
        if targets is not None:
            nats = cross_entropy(found[logits.name], targets)
            return Sample(feeds, targets, nats, {}, logits.name)
    return Sample(feeds, None, 0.0, dict(found))


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
    if any(sample.targets is None for sample in samples):
        return _agreement(run, samples)
    counts = np.array([sample.count for sample in samples], np.float64)
    model = np.array([sample.nats for sample in samples])
    found = np.array(
        [
            cross_entropy(run(sample.feeds)[sample.logits], sample.targets)
            for sample in samples
            if sample.targets is not None
        ]
    )
    total = counts.sum()
    more = (found.sum() - model.sum()) / total  # nats a target
    # Of a ratio of sums over samples, the error by their residuals (Cochran 1977, section 6.4).
    residuals = found - model - more * counts
    size = len(samples)
    doubt = math.sqrt(float(residuals @ residuals) * size / max(1, size - 1)) / total
    return Loss(
        "perplexity",
        math.exp(model.sum() / total),
        math.exp(found.sum() / total),
        math.exp(more) * doubt,
    )


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


def _agreement(run: Run, samples: Iterable[Sample]) -> Loss:
    """The largest relative error of an output, over all samples."""
    squares: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for sample in samples:
        results = run(sample.feeds)
        for name, reference in sample.outputs.items():
            error = results[name].astype(np.float64) - reference
            squares[name] = squares.get(name, 0.0) + float(np.square(error).sum())
            size = float(np.square(reference, dtype=np.float64).sum())
            sizes[name] = sizes.get(name, 0.0) + size
    errors = [math.sqrt(squares[name] / sizes[name]) for name in squares if sizes[name]]
    return Loss("agreement", 0.0, max(errors, default=0.0))
