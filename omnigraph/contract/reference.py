"""The reference: torch's outputs, which every later stage is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from omnigraph.program import Case

#: The name of the input set in which one row is hidden wholly. No calibration sees such a row.
HIDDEN_ROW = "hidden-row"


@dataclass(frozen=True)
class Reference:
    """One input set of a program, and torch's outputs for it in fp32."""

    case: Case
    feeds: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
