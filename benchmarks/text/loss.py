"""Perplexity of a torch model, of a Graph and of an artifact, over the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.text.data import IGNORED, Batch

if TYPE_CHECKING:
    from torch import nn

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Inputs by name to outputs by name, ``logits`` [N, T, V] among them: ``Session.run``, say."""


def perplexity(run: Run, batches: Iterable[Batch]) -> float:
    """exp of the mean cross-entropy of a target: a byte, or the end of a restored text.

    1 is a model that knows every target, 256 one that knows nothing of bytes. Positions whose
    target is `IGNORED` do not count.

    Raises:
        ValueError: no target counts.
    """
    total, count = 0.0, 0
    for batch in batches:
        nats = cross_entropies(run(batch.feeds)["logits"], batch.targets)
        total, count = total + float(nats.sum()), count + nats.size
    if not count:
        raise ValueError("perplexity: expected batches with targets, found none")
    return math.exp(total / count)


def cross_entropies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Of each target that counts, the negative logarithm of its probability.

    Args:
        logits: [N, T, V] of any float dtype; computed on as float64.
        targets: [N, T] int64, below V, or `IGNORED`.

    Returns:
        [targets that count] float64, in nats.
    """
    counts = targets != IGNORED
    chosen = logits[counts].astype(np.float64)  # [M, V]
    chosen -= chosen.max(axis=1, keepdims=True)
    of_target = np.take_along_axis(chosen, targets[counts][:, None], axis=1)[:, 0]
    return np.log(np.exp(chosen).sum(axis=1)) - of_target


def run_module(model: nn.Module) -> Run:
    """A torch model as `perplexity` calls it, in the mode and the dtype that it is in."""
    import torch

    device = next(model.parameters()).device

    def run(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            inputs = {name: torch.from_numpy(ids).to(device) for name, ids in feeds.items()}
            return {"logits": model(**inputs).float().cpu().numpy()}

    return run
