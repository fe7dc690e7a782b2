"""A `Decoder` over any session: keys and values are numpy arrays that go in and come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from omnigraph.runtimes.generation.decoder import check_room
from omnigraph.runtimes.generation.runner import Runner
from omnigraph.runtimes.generation.step_program import StepProgram


class ProgramDecoder:
    """Reads tokens with a program that takes a past, whose arrays it keeps between calls.

    A program without a mask takes rows without padding only. See `Decoder`.

    Args:
        variant: of ``Session.run``; None is what the session was loaded with.
        given: inputs that stay the same for each row, such as what an encoder gave, by name.
    """

    def __init__(
        self,
        session: Runner,
        program: StepProgram,
        rows: int,
        variant: str | None = None,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._session, self._program, self._variant = session, program, variant
        self._shown = np.ones((rows, 0), bool)
        self._state: dict[str, np.ndarray] = {}
        self._given = dict(given or {})

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self._shown)

    @property
    def length(self) -> int:
        """How many positions it has read."""
        return self._shown.shape[1]

    @property
    def capacity(self) -> int | None:
        """How many positions a row may have."""
        return self._program.capacity

    def feed(self, tokens: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
        """Read the next tokens [R, T], and give the scores [R, V] of what follows."""
        check_room(self, tokens.shape[1])
        most = self._program.most_tokens or tokens.shape[1]
        seen = np.ones(tokens.shape, bool) if shown is None else shown
        for start in range(0, tokens.shape[1], most):
            piece = slice(start, start + most)
            scores = self._call(tokens[:, piece], seen[:, piece])
        return scores

    def reorder(self, rows: np.ndarray) -> None:
        """Make row i of what row ``rows[i]`` was."""
        if np.array_equal(rows, np.arange(self.rows)):
            return
        self._shown = self._shown[rows]
        self._state = {name: array[rows] for name, array in self._state.items()}
        self._given = {name: array[rows] for name, array in self._given.items()}

    def truncate(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        self._shown = self._shown[:, :length]
        kept = {}
        for name, array in self._state.items():
            axis = self._program.state[name][1]
            kept[name] = np.ascontiguousarray(array[(slice(None),) * axis + (slice(length),)])
        self._state = kept if length else {}

    def _call(self, tokens: np.ndarray, shown: np.ndarray) -> np.ndarray:
        program, count = self._program, tokens.shape[1]
        seen = np.concatenate([self._shown, shown], axis=1)
        feeds: dict[str, Any] = {program.tokens.name: tokens.astype(program.tokens.dtype)}
        if program.mask is not None:
            feeds[program.mask.name] = seen.astype(program.mask.dtype)
        if program.positions is not None:
            positions = np.maximum(np.cumsum(seen, axis=1) - 1, 0)[:, -count:]
            if len(program.positions.shape) == 1:
                positions = np.arange(seen.shape[1] - count, seen.shape[1])
            feeds[program.positions.name] = positions.astype(program.positions.dtype)
        outputs = self._session.run(
            {**feeds, **self._given, **self._state}, program=program.name, variant=self._variant
        )
        self._state = {past: outputs[present] for past, (present, _) in program.state.items()}
        self._shown = seen
        return outputs[program.logits][:, -1].astype(np.float32)
