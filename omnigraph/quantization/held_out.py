"""Keeps what the loss is measured on apart from what calibration sees."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import islice

import numpy as np

from omnigraph.quantization.data import CalibrationData, Feeds
from omnigraph.quantization.metrics.perplexity import LABELS

#: With fewer samples than this, all of them are for calibration.
ENOUGH = 16
#: Every so manyth sample is held out.
EVERY = 4


def hold_out(data: CalibrationData) -> tuple[CalibrationData, CalibrationData | None]:
    """The samples to calibrate on, and every fourth one, to measure a loss on.

    Both are read as streams, and both have ``data.samples`` samples at most: of long data, more of
    them are read, and calibration loses none.

    Returns:
        All samples and None, where there are fewer than 16.
    """
    if sum(1 for _ in islice(data.read(), ENOUGH)) < ENOUGH:
        return data, None

    def read(held: bool) -> Iterator[Feeds]:
        return (s for place, s in enumerate(data.read(), 1) if (place % EVERY == 0) is held)

    name = f"{data.source}, held out of calibration (every {EVERY}th)"
    held = replace(data, source=name, read=lambda: read(True))
    return replace(data, read=lambda: read(False)), held


def shared(evaluation: CalibrationData, calibration: CalibrationData) -> int:
    """How many evaluation samples are calibration samples too, labels aside."""
    known = {_digest(sample) for sample in islice(calibration.read(), calibration.samples)}
    return sum(_digest(s) in known for s in islice(evaluation.read(), evaluation.samples))


def _digest(sample: Feeds) -> bytes:
    """The same for the same inputs, whatever their integers' or floats' width."""
    digest = sha256()
    for name in sorted(set(sample) - {LABELS}):
        array = np.asarray(sample[name])
        wide = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
        digest.update(f"{name} {wide.shape}".encode())
        digest.update(wide.tobytes())
    return digest.digest()
