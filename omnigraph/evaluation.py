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

from omnigraph.contract import deviations
from omnigraph.errors import UsageError

Feeds = Mapping[str, np.ndarray]
Run = Callable[[Feeds], Mapping[str, np.ndarray]]

LOGITS, LABELS = "logits", "labels"
#: Inputs whose next token is what the logits are of, each with the mask of its padding.
_TOKENS = (("decoder_input_ids", "decoder_attention_mask"), ("input_ids", "attention_mask"))
#: Positions whose logits are worked on in float64 at a time.
_POSITIONS = 1024


@dataclass(frozen=True, eq=False)
class Sample:
    """One evaluation input, what the model gives for it, and the targets where there are any.

    Args:
        feeds: inputs by name.
        outputs: the model's, by name.
        targets: [B, T] int64, what ``logits`` are to predict, -1 where nothing is; or None.
    """

    feeds: Feeds
    outputs: Mapping[str, np.ndarray]
    targets: np.ndarray | None


@dataclass(frozen=True)
class Loss:
    """How much worse than the model.

    Args:
        measure: "perplexity" or "agreement".
        model: the model's perplexity; 0 for agreement.
        found: the perplexity found, or the relative error.
    """

    measure: str
    model: float
    found: float

    @property
    def relative(self) -> float:
        """The growth of the perplexity, or the error, as a part of one: 0.005 is 0.5%."""
        return self.found / self.model - 1 if self.measure == "perplexity" else self.found

    def __str__(self) -> str:
        if self.measure == "perplexity":
            return f"perplexity {self.found:.4f} for {self.model:.4f}, {self.relative:+.3%}"
        return f"outputs differ by {self.found:.3%}"


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
    model = found = 0.0
    count = 0
    for sample in samples:
        assert sample.targets is not None
        model += cross_entropy(sample.outputs[LOGITS], sample.targets)
        found += cross_entropy(run(sample.feeds)[LOGITS], sample.targets)
        count += int((sample.targets >= 0).sum())
    return Loss("perplexity", math.exp(model / count), math.exp(found / count))


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
        ones = dict.fromkeys(sample.outputs, 1.0)
        for name, found in deviations(run(sample.feeds), sample.outputs, ones).items():
            reference = sample.outputs[name]
            squares[name] = squares.get(name, 0.0) + found.rms**2 * reference.size
            total = float(np.square(reference, dtype=np.float64).sum())
            sizes[name] = sizes.get(name, 0.0) + total
    errors = [math.sqrt(squares[name] / sizes[name]) for name in squares if sizes[name]]
    return Loss("agreement", 0.0, max(errors, default=0.0))
