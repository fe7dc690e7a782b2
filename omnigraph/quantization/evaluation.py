"""How much worse a compiled program is than the model: by perplexity, or by agreement.

Perplexity is exp of the mean cross-entropy of a target token. Where DATA has ``labels`` [B, T],
those are the targets of ``logits`` [B, T, V], and negative ones do not count. Where it has none,
the target of each position is the next token of ``decoder_input_ids``, or of ``input_ids`` where
the program has no decoder; padding, by the attention mask of the same side, does not count. A
program without logits is judged by agreement: the root mean square of its outputs' differences from
the model's, relative to the outputs' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.errors import UsageError

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

LOGITS, LABELS = "logits", "labels"
#: Inputs whose next token is what the logits are of, each with the mask of its padding.
_TOKENS = (("decoder_input_ids", "decoder_attention_mask"), ("input_ids", "attention_mask"))
#: Positions whose logits are worked on in float64 at a time.
_POSITIONS = 1024
#: Standard errors above the mean that leave 5 of 100 out.
_ONE_SIDED = 1.645


@dataclass(frozen=True, eq=False)
class Sample:
    """One evaluation input, and what the model makes of it.

    Args:
        feeds: inputs by name.
        targets: [B, T] int64, what ``logits`` are to predict, -1 where nothing is; or None.
        nats: the model's sum of cross-entropies of the targets.
        outputs: the model's, by name, where there are no targets.
    """

    feeds: Feeds
    targets: np.ndarray | None
    nats: float
    outputs: Mapping[str, np.ndarray]

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
        """What ``relative`` is below, at 95 of 100, on other samples of the same kind."""
        return self.relative + _ONE_SIDED * self.doubt

    def __str__(self) -> str:
        if self.measure == "perplexity":
            return f"perplexity {self.found:.4f} for {self.model:.4f}, {self.relative:+.3%}"
        return f"outputs differ by {self.found:.3%}"


def sample_of(run: Run, feeds: Feeds, given: Feeds) -> Sample:
    """An evaluation sample, by what the model gives.

    Args:
        run: the model.
        feeds: what the program takes.
        given: what the evaluation data hold, perhaps with ``labels``.
    """
    outputs = run(feeds)
    targets = targets_of(given, outputs)
    if targets is None:
        return Sample(feeds, None, 0.0, dict(outputs))
    return Sample(feeds, targets, cross_entropy(outputs[LOGITS], targets), {})


def targets_of(feeds: Feeds, outputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """What the logits of a program are to predict, or None where it has none that are known.

    Args:
        feeds: of an evaluation set: inputs by name, and perhaps ``labels``.
        outputs: of the program for them.

    Returns:
        [B, T] int64; -1 is no target.

    Raises:
        UsageError: ``labels`` are not of the shape of the logits.
    """
    logits = outputs.get(LOGITS)
    if logits is None or logits.ndim != 3:
        return None
    if (labels := feeds.get(LABELS)) is not None:
        if labels.shape != logits.shape[:2]:
            raise UsageError(
                "The labels of the evaluation data are not of the shape of the logits",
                expected=list(logits.shape[:2]),
                found=list(labels.shape),
                hint="one label for each position; a negative one counts for nothing",
            )
        return np.where(labels < 0, -1, labels).astype(np.int64)
    for tokens, mask in _TOKENS:
        ids = feeds.get(tokens)
        if ids is None or ids.shape != logits.shape[:2]:
            continue
        following = np.full(ids.shape, -1, np.int64)
        following[:, :-1] = ids[:, 1:]
        if mask in feeds and feeds[mask].shape == ids.shape:
            shown = feeds[mask].astype(bool)
            following[:, :-1][~(shown[:, 1:] & shown[:, :-1])] = -1
        return following if (following >= 0).any() else None
    return None


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
            cross_entropy(run(sample.feeds)[LOGITS], sample.targets)
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
    rows, wanted = logits[counts], targets[counts]
    return sum(
        _nats(rows[start : start + _POSITIONS], wanted[start : start + _POSITIONS])
        for start in range(0, len(wanted), _POSITIONS)
    )


def _nats(logits: np.ndarray, wanted: np.ndarray) -> float:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(wide, wanted[:, None], axis=1)[:, 0]
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
