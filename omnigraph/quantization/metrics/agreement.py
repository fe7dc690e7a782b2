"""Agreement: how large the differences of the outputs from the model's are. It fits all outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.quantization.confidence import upper_ratio
from omnigraph.quantization.metrics.metric import Example, Feeds, Loss, Metric


@dataclass(frozen=True, eq=False)
class Outputs:
    """The model's outputs for one example.

    Args:
        arrays: by name.
        rows: how many samples this is: B, or 1 where an output has no batch axis.
    """

    arrays: Feeds
    rows: int


class Agreement(Metric[Outputs]):
    """The root mean square of an output's differences, relative to the output's own.

    The worst output counts. Its upper end is that of the ratio of sums of squares
    (`omnigraph.quantization.confidence.upper_ratio`), of which the root is taken.
    """

    name = "agreement"
    expects = "any outputs"
    of_result = False

    def known(self, example: Example, results: Feeds) -> Outputs | None:
        """All outputs."""
        outputs = example.outputs
        by_row = bool(outputs) and all(spec.shape[:1] == ("batch",) for spec in outputs)
        return Outputs(dict(results), len(results[outputs[0].name]) if by_row else 1)

    def loss(self, known: Sequence[Outputs], results: Iterable[Feeds]) -> Loss:
        """The largest relative error of an output, over all samples.

        Its upper end is the largest of the outputs': that of the worst output is among them.
        """
        squares: dict[str, list[np.ndarray]] = {}
        sizes: dict[str, list[np.ndarray]] = {}
        for expected, found in zip(known, results, strict=True):
            for name, reference in expected.arrays.items():
                error = found[name].astype(np.float64) - reference
                squares.setdefault(name, []).append(_row_squares(error, expected.rows))
                sizes.setdefault(name, []).append(_row_squares(reference, expected.rows))
        worst = Loss(self.name, 0.0, 0.0, 0)
        for name in squares:
            relative, upper, rows = _relative_error(
                np.concatenate(squares[name]), np.concatenate(sizes[name])
            )
            worst = Loss(self.name, max(worst.relative, relative), max(worst.upper, upper), rows)
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
