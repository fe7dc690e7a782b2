"""Reads the importance of heads from a file, and chooses the heads to remove."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from omnigraph.errors import UsageError


def read_importance(path: str | Path) -> dict[str, np.ndarray]:
    """The importance of each head [H], by the module path of its attention.

    Args:
        path: JSON, ``{"encoder.blocks.0.self_attention": [0.9, 0.1, …], …}``, or an ``.npz`` with
            one array for each attention.

    Raises:
        UsageError: no such file, or not of that form.
    """
    try:
        if str(path).endswith(".npz"):
            with np.load(path, allow_pickle=False) as npz:
                found = {name: npz[name] for name in npz.files}
        else:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = {name: np.asarray(array, np.float64) for name, array in found.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"The importance of heads cannot be read from {path}",
            expected='JSON such as {"encoder.blocks.0.self_attention": [0.9, 0.1]}, or .npz',
            found=str(error).splitlines()[0],
            hint="`omnigraph explain` lists the module path of each attention",
        ) from error
    for name, array in scores.items():
        if array.ndim != 1 or not array.size or not np.isfinite(array).all():
            raise UsageError(
                f"The importance of the heads of {name!r} in {path} is no list of finite numbers",
                expected="one number for each head",
                found=f"shape {list(array.shape)}",
                hint="the larger a number, the longer its head is kept",
            )
    return scores


def least_important(
    importance: Mapping[str, Sequence[float] | np.ndarray], keep: int
) -> dict[str, tuple[int, ...]]:
    """The heads to remove so that each attention keeps its ``keep`` most important ones.

    Of equally important heads the first stay. An attention with fewer heads keeps them all.
    """
    removed = {}
    for name, scores in importance.items():
        order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
        if gone := tuple(sorted(int(head) for head in order[max(keep, 1) :])):
            removed[name] = gone
    return removed
