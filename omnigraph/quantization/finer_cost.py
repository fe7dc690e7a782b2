"""What it costs in time that sensitive layers keep the finer scheme of their precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from omnigraph.graph import Graph
from omnigraph.lowering import Target
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.progress import Progress, silent
from omnigraph.quantization.region_timing import Timing, regions, time_regions

#: Positions of the run that is timed.
TOKENS = 128
_USUAL, _FINER = "usual", "finer"


def finer_cost(
    graph: Graph,
    facts: QuantizationFacts,
    target: Target,
    precision: str,
    options: Mapping[str, str],
    progress: Progress = silent,
) -> float | None:
    """The milliseconds that finer layers add to a run of `TOKENS` tokens, on this machine.

    Args:
        graph: before its layers are quantized.
        facts: known then; its choices are the layers that are finer.
        target: which compiles and runs each of them alone, in both schemes.
        precision: of the artifact.
        options: of the target.

    Returns:
        None where no layer is finer, or the target does not run here.
    """
    scheme = target.schemes[precision]
    if scheme is None or scheme.finer is None or target.unrunnable() is not None:
        return None
    finer = {layer for layer, chosen in facts.choices.items() if chosen == scheme.finer}
    if not finer:
        return None
    schemes = {_USUAL: scheme, _FINER: scheme.finer}
    timing = Timing(target, precision, schemes, TOKENS, replace(facts, choices={}), options)
    found = [r for r in regions(graph) if any(n.layer in finer for n in r.linear_layers)]
    total = 0.0
    for region, times in zip(found, time_regions(found, timing, progress), strict=True):
        sizes = {n.layer: n.contraction * n.channels for n in region.linear_layers}
        part = sum(size for layer, size in sizes.items() if layer in finer) / sum(sizes.values())
        total += part * (times.milliseconds[_FINER] - times.milliseconds[_USUAL])
    return total


def measured_cost(milliseconds: Iterable[float | None]) -> dict[str, float]:
    """The report's field of what the finer layers of all programs cost; empty if nothing is known.

    It is of the program in which they cost most: a layer may be in several.
    """
    known = [cost for cost in milliseconds if cost is not None]
    return {"finer_milliseconds": round(max(known), 3)} if known else {}
