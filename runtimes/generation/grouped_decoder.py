"""A `Decoder` whose rows of unequal prompts run apart, so that none has padding before it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omnigraph.runtimes.generation.decoder import Decoder


class GroupedDecoder:
    """Rows in groups of equal padding, each read by a decoder of its own, without that padding.

    For programs that have no mask, and for those whose positions count from the first column:
    padding would move each token of a row. See `Decoder`.

    Args:
        open_decoder: makes a decoder of so many rows.
        padding: [R], how many positions before each row are padding.
    """

    def __init__(self, open_decoder: Callable[[int], Decoder], padding: np.ndarray) -> None:
        self._length = 0
        self._padding = padding
        self._groups = {
            int(each): open_decoder(int((padding == each).sum())) for each in np.unique(padding)
        }

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._padding)

    @property
    def length(self) -> int:
        """How many positions it has read, padding included."""
        return self._length

    @property
    def capacity(self) -> int | None:
        """How many positions a row may have, padding included."""
        ends = [(padding, group.capacity) for padding, group in self._groups.items()]
        return min((padding + end for padding, end in ends if end is not None), default=None)

    def feed(self, tokens: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
        """Read the next tokens [R, T], and give the scores [R, V] of what follows.

        The scores of a row that has had nothing but padding so far are zeros.
        """
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for padding, group in self._groups.items():
            rows = np.flatnonzero(self._padding == padding)
            skipped = max(0, padding - self._length)
            if skipped < tokens.shape[1] and len(rows):
                seen = None if shown is None else shown[rows, skipped:]
                found.append((rows, group.feed(tokens[rows, skipped:], seen)))
        scores = np.zeros((self.rows, found[0][1].shape[1]), np.float32)
        for rows, part in found:
            scores[rows] = part
        self._length += tokens.shape[1]
        return scores

    def reorder(self, rows: np.ndarray) -> None:
        """Make row i of what row ``rows[i]`` was."""
        within = np.empty(self.rows, np.int64)  # the place of each row in its group
        for padding in self._groups:
            members = np.flatnonzero(self._padding == padding)
            within[members] = np.arange(len(members))
        self._padding = self._padding[rows]
        for padding in list(self._groups):
            taken = within[rows[self._padding == padding]]
            if len(taken):
                self._groups[padding].reorder(taken)
            else:
                del self._groups[padding]

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        for padding, group in self._groups.items():
            group.truncate(max(0, length - padding))
        self._length = min(self._length, length)
