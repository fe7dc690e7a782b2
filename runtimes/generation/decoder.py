"""`Decoder`: all that the loop knows of a model and of its keys and values."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from omnigraph.errors import InputError
from omnigraph.runtimes.generation.prompt import Prompt


class Decoder(Protocol):
    """A model with the keys and values of what it has read, in rows [R] of one length.

    How it keeps them, and in whose memory, nothing else knows. Beams reorder rows, speculation
    truncates them.
    """

    @property
    def rows(self) -> int:
        """How many rows there are, R."""

    @property
    def length(self) -> int:
        """How many positions it has read in each row, padding included."""

    @property
    def capacity(self) -> int | None:
        """How many positions a row may have; None is no bound."""

    def feed(self, tokens: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
        """Read the next tokens of all rows.

        Args:
            tokens: [R, T] int64, T of at least 1.
            shown: [R, T] bool, False for padding; None is none.

        Returns:
            The scores [R, V] float32 of what follows the last of them.

        Raises:
            InputError: they do not fit into the capacity.
        """

    def reorder(self, rows: np.ndarray) -> None:
        """Make row i of what row ``rows[i]`` was, [R'] int64: as many rows as there are of these.

        Rows may come several times, or not at all.
        """

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on."""


def check_room(decoder: Decoder, more: int) -> None:
    """Refuse positions that go beyond a decoder's capacity.

    Raises:
        InputError: naming both.
    """
    capacity = decoder.capacity
    if capacity is not None and decoder.length + more > capacity:
        raise InputError(
            "The keys and values have no room for more tokens",
            expected=f"at most {capacity} positions, the greatest length that the artifact takes",
            found=f"{decoder.length} and {more} more",
            hint="ask for fewer; an export with --dynamic past=0:N has room for more, as far as "
            "the model has positions",
        )


def prefill(decoder: Decoder, prompt: Prompt, chunk: int | None) -> np.ndarray:
    """Read prompts [R, P], in pieces of ``chunk`` positions where that is given.

    Returns:
        The scores [R, V] float32 of what follows them.
    """
    read = prompt.compact()
    length = read.ids.shape[1]
    step = length if chunk is None else chunk
    for start in range(0, length, step):
        piece = slice(start, start + step)
        scores = decoder.feed(read.ids[:, piece], read.shown[:, piece])
    return scores
