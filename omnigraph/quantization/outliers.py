"""Channels of activations that are far larger than the others: massive activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnigraph.passes.analysis.quantization.statistics import Statistics

#: How many times the median channel an outlier is, at least: it takes three of eight bits from the
#: usual channels. (Massive activations of large language models are 1000 times the median number:
#: Sun et al. 2024.)
_TIMES = 8
#: The activations and the channels of each that are named, at most.
_MOST = 3


def outlier_channels(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """The activations with the largest outliers, by the layer that reads them; JSON-ready.

    Returns:
        By the name of the layer's weight: ``channels``, the largest first, and ``times``, how many
        times the median channel the largest is. An activation that several layers read is named
        once.
    """
    found: dict[tuple[int, ...], tuple[float, str]] = {}
    for name, seen in statistics.observations.items():
        sizes = np.maximum(-seen.lows, seen.highs)
        usual = float(np.median(sizes))
        order = np.argsort(-sizes, kind="stable")[:_MOST]
        times = sizes[order] / usual if usual > 0 else np.zeros(len(order))
        channels = tuple(int(n) for n, size in zip(order, times, strict=True) if size >= _TIMES)
        if channels and (channels not in found or times[0] > found[channels][0]):
            found[channels] = float(times[0]), name
    largest = sorted(((t, name, c) for c, (t, name) in found.items()), reverse=True)[:_MOST]
    return {
        name.removesuffix("_T").removesuffix(".weight"): {
            "channels": list(channels),
            "times": round(times, 1),
        }
        for times, name, channels in largest
    }
