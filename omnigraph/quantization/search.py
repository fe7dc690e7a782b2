"""The budget of an export: what is measured, on which Graph, and the plan that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.lowering import Target
from omnigraph.passes.analysis.quantization.linear_layers import is_chosen
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.insert_qdq import FLOAT
from omnigraph.quantization.budget import CANDIDATES, BudgetSearch, Plan, Unit, units_of
from omnigraph.quantization.evaluation import Run, sample_of
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.quantizer import Quantizer, is_quantizing
from omnigraph.quantization.region_timing import RegionTimes, regions, time_regions


def search(
    quantizer: Quantizer,
    target: Target,
    asked: str,
    base: str,
    pipeline: Sequence[Pass],
    item: TracedProgram,
    options: Mapping[str, str],
    wanted: Quantization,
    told: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Choose the precision of every layer, on one program; the others share its weights.

    Args:
        asked: the precision asked for, which says what a layer may become.
        base: the precision that the artifact will have.
        pipeline: of ``base``, all of it.
        item: the program, with its Graph as traced; it is not changed.
        options: of the target.
        wanted: the loss to stay within, and whether to time what is quantized.

    Raises:
        UsageError: there is nothing to measure the loss on, or the target does not run here.
    """
    assert item.graph is not None
    graph = item.graph.clone()
    run_passes(graph, takewhile(lambda pass_: not is_quantizing(pass_), pipeline))
    keep, gate, most = wanted.keep, wanted.speed_gate, wanted.max_loss
    units = units_of(graph, lambda layer: is_chosen(layer, keep))
    candidates = CANDIDATES[asked]

    def quantize(choices: Mapping[str, str]) -> Run:
        return GraphRunner(quantizer.quantize(pipeline, graph, item, choices)).run

    # Everything at once, so that all that is to be observed is observed in one pass of the data.
    for precision in candidates:
        quantizer.quantize(pipeline, graph, item, _all(units, precision))
    samples = []
    if most is not None:
        model = GraphRunner(graph).run
        pairs = quantizer.evaluation(item)
        samples = [sample_of(model, *pair, item.inputs, item.outputs) for pair in pairs]
    times = {}
    if gate is not None:
        times = _times(
            quantizer, target, base, candidates, pipeline, graph, item, units, options, gate, told
        )
    return BudgetSearch(units, candidates, quantize, samples, times, told).run(most)


def _all(units: Sequence[Unit], precision: str) -> dict[str, str]:
    return {layer: precision for unit in units for layer in unit.layers}


def _times(
    quantizer: Quantizer,
    target: Target,
    base: str,
    candidates: Sequence[str],
    pipeline: Sequence[Pass],
    graph: Graph,
    item: TracedProgram,
    units: Sequence[Unit],
    options: Mapping[str, str],
    gate: int,
    told: Callable[[str], None],
) -> dict[int, RegionTimes]:
    """The times of each unit's region, as a share of the region's by the unit's weights."""
    if (reason := target.unrunnable()) is not None:
        raise UsageError(
            f"The speed gate times on target {target.name!r}, which does not run here: {reason}",
            hint="leave --speed-gate out, or export on the machine that it is for",
        )
    # Smoothed, where that is done: weights have the names then that statistics know.
    smooth = quantizer.quantize(pipeline, graph, item, _all(units, FLOAT))
    found = regions(smooth)
    timed = time_regions(
        found,
        target,
        base,
        candidates,
        gate,
        seen=quantizer.statistics,
        rounded=quantizer.rounded,
        four_bits=quantizer.options.four_bits,
        options=options,
        told=told,
    )
    places = {layer: place for place, unit in enumerate(units) for layer in unit.layers}
    times = {}
    for region, whole in zip(found, timed, strict=True):
        sizes = [product.contraction * product.channels for product in region.products]
        for product, size in zip(region.products, sizes, strict=True):
            if (place := places.get(product.layer)) is not None:
                share = size / sum(sizes)
                times[place] = RegionTimes(
                    {name: value * share for name, value in whole.milliseconds.items()}
                )
    return times
