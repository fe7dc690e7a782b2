"""What torch computed: the truth that every later stage is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omnigraph.program import Case


@dataclass(frozen=True)
class Reference:
    """One input set of a program and what torch, in fp32, made of it."""

    case: Case
    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
