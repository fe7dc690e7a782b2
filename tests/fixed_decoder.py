"""A decoder whose scores a test gives, and the plan of a request to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from omnigraph.runtimes.generation.config import GenerationConfig
from omnigraph.runtimes.generation.plan import Hooks, Plan, make_plan
from omnigraph.runtimes.generation.prompt import prompt_of


class Fixed:
    """A decoder that scores every next token by a function of how many positions it has read."""

    def __init__(self, rows: int, scores: Callable[[int], np.ndarray]) -> None:
        self.rows, self.length, self.capacity, self._scores = rows, 0, None, scores
        self.fed: list[list[int]] = []

    def feed(self, tokens: np.ndarray, shown: np.ndarray | None = None) -> np.ndarray:
        assert len(tokens) == self.rows
        self.length += tokens.shape[1]
        self.fed.append(tokens[:, -1].tolist())
        return np.tile(self._scores(self.length).astype(np.float32), (self.rows, 1))

    def reorder(self, rows: np.ndarray) -> None:
        self.rows = len(rows)

    def truncate(self, length: int) -> None:
        self.length = length


def plan_of(prompts: Any, hooks: Hooks | None = None, **fields: Any) -> Plan:
    config = GenerationConfig.from_dict({"max_new_tokens": 5, **fields})
    return make_plan(config, set(fields), prompt_of(prompts, None, config), None, hooks or Hooks())
