"""Runs passes that quantize: gathers their facts, and checks their noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.ledger.precision import LayerPrecision, layer_precisions
from omnigraph.passes.base import Observer, Pass, PassRecord, run_passes
from omnigraph.passes.calibrated_pass import CalibratedPass, QuantizationFacts
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.precision import PRECISIONS, QUANTIZED
from omnigraph.quantization.gather import Calibrator
from omnigraph.quantization.noise import check_quantized, noise_of
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.outliers import outlier_channels


@dataclass(frozen=True)
class Rounding:
    """What quantization did to one program.

    Args:
        noise: that it explains at the outputs, relative (`noise_of`).
        layers: the types of each linear layer and embedding.
    """

    noise: float
    layers: list[LayerPrecision]


@dataclass(frozen=True)
class Quantized:
    """The result of some passes on one program.

    Args:
        records: of each pass.
        facts: all that is known after them, for other programs and targets.
        rounding: the effect of quantization; None where no pass quantized.
    """

    records: list[PassRecord] = field(default_factory=list)
    facts: QuantizationFacts = field(default_factory=QuantizationFacts)
    rounding: Rounding | None = None


def run_calibrated(
    graph: Graph,
    passes: Iterable[Pass],
    calibrator: Calibrator,
    facts: QuantizationFacts,
    observers: Sequence[Observer] = (),
    *,
    first: int = 0,
) -> Quantized:
    """Run passes on a Graph, in place; gather facts for each pass that needs them.

    Args:
        first: the position of the first of these passes in the whole pipeline.

    Raises:
        UsageError: an activation is NaN or infinite.
        GraphError: a pass failed.
    """
    done = Quantized(facts=facts)
    for position, pass_ in enumerate(passes, first):
        step = run_one(graph, pass_, calibrator, done.facts, observers, position)
        done = Quantized([*done.records, *step.records], step.facts, step.rounding or done.rounding)
    return done


def run_one(
    graph: Graph,
    pass_: Pass,
    calibrator: Calibrator,
    facts: QuantizationFacts,
    observers: Sequence[Observer] = (),
    position: int = 0,
) -> Quantized:
    """Run one pass; see `run_calibrated`.

    Args:
        position: of the pass in the pipeline, for the observers.
    """
    if isinstance(pass_, CalibratedPass):
        pass_, facts = calibrator.inform(pass_, graph, facts)
    if not isinstance(pass_, InsertQdq):
        return Quantized(run_passes(graph, [pass_], observers, first=position), facts)
    expected, hidden = noise_of(graph, pass_)
    records = run_passes(graph, [pass_], observers, first=position)
    return Quantized(
        records, facts, Rounding(math.hypot(expected, hidden), layer_precisions(graph))
    )


def check_rounding(graph: Graph, item: TracedProgram, rounding: Rounding) -> Deviation:
    """The deviation of a Graph from torch, as `InsertQdq` left it.

    It comes after the comparison with the Graph before, which knows the node that is at fault.

    Raises:
        ContractError: quantization changes the numbers by more than its noise.
    """
    exact = Tolerance.for_precision("fp32", depth=item.depth, contraction=item.contraction)
    return check_quantized(graph, item.references, rounding.noise, exact, item.name)


def quantized_copy(
    graph: Graph, passes: Iterable[Pass], calibrator: Calibrator, facts: QuantizationFacts
) -> tuple[Graph, QuantizationFacts]:
    """A copy of a fused float Graph, quantized by the calibrated passes of a pipeline.

    Args:
        facts: known so far, with the choice for each layer.

    Returns:
        The copy, and all facts known then.
    """
    copy = graph.clone()
    for pass_ in passes:
        if isinstance(pass_, CalibratedPass):
            informed, facts = calibrator.inform(pass_, copy, facts)
            run_passes(copy, [informed])
    return copy, facts


def manifest_fields(
    options: Quantization,
    facts: QuantizationFacts,
    deviations: Mapping[str, float],
    budget: Mapping[str, Any],
) -> dict[str, Any]:
    """How an artifact was quantized, as JSON-ready fields for the manifest.

    Args:
        deviations: by program, of the quantized Graph from torch, rms.
        budget: the plan of a search for the precision of each layer; empty without a search.
    """
    # By name: several targets may store one weight on different grids.
    unseen = {name: found.unseen for (name, _), found in facts.rounded.items()}
    learned = {name for (name, _), found in facts.rounded.items() if found.learned}
    finer = sorted(set(facts.errors) & set(facts.choices) - set(options.choices))
    fields: dict[str, Any] = {
        "preset": options.preset,
        "finer": {} if budget else {layer: round(facts.errors[layer], 4) for layer in finer},
        "keep": list(options.keep),
        "choices": dict(options.choices),
        **({"budget": dict(budget)} if budget else {}),
        "compensated": len(unseen) - len(learned),
        "learned": len(learned),
        "unseen_weights": sum(unseen.values()),
        "deviation": dict(deviations),
    }
    if (statistics := facts.statistics) is not None:
        fields |= {
            "source": statistics.source,
            "method": statistics.method,
            "samples": statistics.samples,
            "statistics": statistics.digest,
            "outliers": outlier_channels(statistics),
        }
    return fields


def save_statistics(options: Quantization, facts: QuantizationFacts) -> None:
    """Write the statistics to the file in ``options.save``, if any.

    Raises:
        UsageError: there are none, since the precision needs none.
    """
    if options.save is None:
        return
    if facts.statistics is None:
        calibrated = " and ".join(n for n in QUANTIZED if PRECISIONS[n].needs_calibration)
        raise UsageError(
            "There are no statistics to save: this precision needs none",
            hint=f"{calibrated} are calibrated; leave --save-calibration out",
        )
    try:
        facts.statistics.save(options.save)
    except OSError as error:
        raise UsageError(
            f"The statistics cannot be written to {options.save}",
            found=str(error),
            hint="give --save-calibration a path in a folder that exists",
        ) from error
