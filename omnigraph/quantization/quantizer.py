"""What an export's quantizing passes must know: ranges from calibration, weights with compensation.

The passes stand in a target's pipeline without statistics, and get them when their turn comes: what
is observed is the Graph that the passes before them left. Statistics go by the names of weights,
which every program and every target has in common, so each activation is observed once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeGuard

import numpy as np

from omnigraph.contract.tolerance import Deviation, Tolerance
from omnigraph.errors import UsageError
from omnigraph.export_job import TracedProgram
from omnigraph.graph import Graph
from omnigraph.ledger.precision import LayerPrecision, layer_precisions
from omnigraph.passes.analysis.quantization.linear_layers import (
    LinearLayer,
    is_chosen,
    linear_layers,
)
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.analysis.quantization.weight_rounding import RoundedWeight, compensate
from omnigraph.passes.base import Pass, run_passes
from omnigraph.passes.correct_biases import CorrectBiases
from omnigraph.passes.insert_qdq import InsertQdq
from omnigraph.passes.smooth_activations import SmoothActivations
from omnigraph.program import Program
from omnigraph.quantization.calibration import calibrate, second_moments
from omnigraph.quantization.data import RANDOM, CalibrationData, Feedings, open_data, random_data
from omnigraph.quantization.noise import check_quantized, noise_of, quantized_tolerance
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.real_inputs import with_real_inputs

Feeds = Mapping[str, np.ndarray]
_Quantizing = SmoothActivations | CorrectBiases | InsertQdq
#: Told what is being done.
Told = Callable[[str], None]
_FOUR_BITS = 4


@dataclass(frozen=True)
class Quantized:
    """One program after its products were quantized.

    Args:
        deviation: how far it is from torch, as onnxruntime runs it.
        hidden: the noise of what the runtime rounds by itself, relative.
        layers: the types of each product.
    """

    deviation: Deviation
    hidden: float
    layers: list[LayerPrecision]

    def tolerance(self, floats: Tolerance) -> Tolerance:
        """What an artifact of it is allowed; ``floats`` is for what stays in float."""
        return quantized_tolerance(self.deviation, self.hidden, floats)


def is_quantizing(pass_: Pass) -> TypeGuard[_Quantizing]:
    """Whether a pass is one of those that need what a Quantizer knows."""
    return isinstance(pass_, _Quantizing)


class Quantizer:
    """The calibration of one export: what is observed once is known to every program and target.

    Args:
        options: what was asked for.
        programs: those that are exported; random input sets are drawn from them here.
        told: told what is being done.

    Raises:
        UsageError: the calibration data cannot be read, or suits none of the programs.
    """

    def __init__(
        self, options: Quantization, programs: Sequence[Program], told: Told = lambda _: None
    ) -> None:
        self.options, self._told = options, told
        self.statistics: Statistics | None = None
        #: By module path, the precision of each layer, where it is not that of the export.
        self.choices: Mapping[str, str] = options.choices
        #: What a search for them found: JSON-ready.
        self.budget: dict[str, Any] = {}
        self._rounded: dict[str, RoundedWeight] = {}
        self._deviations: dict[str, Deviation] = {}
        self._random: dict[str, list[Feeds]] = {}
        self._data: CalibrationData | None = None
        self._evaluation: CalibrationData | None = None
        self._programs = tuple(programs)
        if options.calibration is None:
            self._programs = with_real_inputs(programs)
            self._random = {p.name: random_data(p, options.samples) for p in self._programs}
        elif Statistics.is_saved(options.calibration):
            assert isinstance(options.calibration, str | os.PathLike)
            self.statistics = Statistics.load(options.calibration)
            self._programs = with_real_inputs(programs)
        else:
            self._data = open_data(
                options.calibration, tokenizer=options.tokenizer, samples=options.samples
            )
            self._data.check(programs)
            self._evaluation = self._data
            self._programs = with_real_inputs(programs, self._data)
        if options.evaluation is not None:
            self._evaluation = open_data(
                options.evaluation, tokenizer=options.tokenizer, samples=options.samples
            )
            self._evaluation.check(programs)

    @property
    def source(self) -> str:
        """What is observed, for a person."""
        if self._data is not None:
            return self._data.source
        return RANDOM if self.statistics is None else self.statistics.source

    def take_programs(self) -> tuple[Program, ...]:
        """The programs to export, which are not kept: their input sets for the contract are real.

        Random ids and random pasts are none that the ranges are chosen for.
        """
        programs, self._programs = self._programs, ()
        return programs

    def passes(
        self,
        pipeline: Sequence[Pass],
        graph: Graph,
        item: TracedProgram,
        quantized: Callable[[Quantized], None],
    ) -> Iterator[Pass]:
        """A target's pipeline, its quantizing passes with what they must know of one program.

        Each is yielded when the Graph is as the passes before it left it. When the last has run,
        the quantized Graph is compared with torch, and ``quantized`` is told.

        Raises:
            UsageError: an activation is NaN or infinite.
            ContractError: quantization changes the numbers more than its noise explains.
        """
        for pass_ in pipeline:
            if is_quantizing(pass_):
                pass_ = self._informed(pass_, graph, item)
            if not isinstance(pass_, InsertQdq):
                yield pass_
                continue
            expected, hidden = noise_of(graph, pass_)
            yield pass_
            self._told(f"numbers of {item.name}, quantized")
            noise = math.hypot(expected, hidden)
            exact = Tolerance.for_precision("fp32", depth=item.depth, contraction=item.contraction)
            found = check_quantized(graph, item.references, noise, exact, item.name)
            self._deviations[item.name] = found
            quantized(Quantized(found, hidden, layer_precisions(graph)))

    def quantize(
        self,
        pipeline: Sequence[Pass],
        graph: Graph,
        item: TracedProgram,
        choices: Mapping[str, str],
    ) -> Graph:
        """A copy of a float Graph, quantized by choices, as the quantizing passes of a pipeline do.

        Args:
            graph: what the passes before the quantizing ones left.
            choices: the precision of every layer.
        """
        before, self.choices = self.choices, choices
        copy = graph.clone()
        try:
            for pass_ in pipeline:
                if is_quantizing(pass_):
                    run_passes(copy, [self._informed(pass_, copy, item)])
        finally:
            self.choices = before
        return copy

    @property
    def rounded(self) -> Mapping[str, RoundedWeight]:
        """Weights that were rounded with compensation, by name."""
        return self._rounded

    def evaluation(self, item: TracedProgram) -> Iterator[tuple[Feeds, Feeds]]:
        """What a program takes, and all that the evaluation data hold, for each sample."""
        if self._evaluation is None:
            yield from ((feeds, feeds) for feeds in self._drawn(item) or ())
        elif self._evaluation.suits(item.inputs):
            given = islice(self._evaluation.read(), self._evaluation.samples)
            yield from zip(self._evaluation.feeds(item.inputs), given, strict=True)

    @property
    def evaluation_source(self) -> str:
        """What the loss is measured on, for a person."""
        return RANDOM if self._evaluation is None else self._evaluation.source

    def _informed(
        self,
        pass_: SmoothActivations | CorrectBiases | InsertQdq,
        graph: Graph,
        item: TracedProgram,
    ) -> Pass:
        """A quantizing pass with the options of the export, and with what was observed."""
        keep = pass_.keep or self.options.keep
        found = [p for p in linear_layers(graph) if not is_chosen(p.layer, keep)]
        if isinstance(pass_, SmoothActivations):
            if pass_.statistics is None:
                self._observe(graph, item, found)
                pass_ = replace(pass_, statistics=self.statistics)
            return replace(pass_, keep=keep)
        four_bits = self.options.four_bits
        pass_ = replace(
            pass_, keep=keep, choices=pass_.choices or self.choices, four_bits=four_bits
        )
        plan = InsertQdq(
            pass_.target, pass_.device, pass_.precision, None, keep, pass_.choices, four_bits
        )
        if pass_.statistics is None:
            self._observe(graph, item, [p for p in found if _has_ranges(plan, p)])
            pass_ = replace(pass_, statistics=self.statistics)
        self._compensate(graph, item, [p for p in found if self._is_compensated(plan, p)], plan)
        return replace(pass_, rounded=self._rounded)

    def _feeds(self, item: TracedProgram) -> Iterable[Feeds] | None:
        """The samples of a program; None where there are none for it."""
        if self._data is not None and self._data.suits(item.inputs):
            return self._data.feeds(item.inputs, item.dims)
        return self._drawn(item)

    def _drawn(self, item: TracedProgram) -> list[Feeds] | None:
        """Input sets that were drawn, their empty pasts in the types that the program now takes."""
        if (drawn := self._random.get(item.name)) is None:
            return None
        types = {spec.name: np.dtype(spec.dtype) for spec in item.inputs}
        return [{name: a.astype(types[name], copy=False) for name, a in f.items()} for f in drawn]

    def _observe(self, graph: Graph, item: TracedProgram, wanted: Sequence[LinearLayer]) -> None:
        """Calibrate on the Graph as it is, for products of which nothing is known yet."""
        known = self.statistics.observations if self.statistics is not None else {}
        new = [linear for linear in wanted if linear.weight.name not in known]
        feeds = self._feeds(item) if new else None
        if feeds is None:
            return
        method, source = self.options.method, self.source
        found = calibrate(graph, new, feeds, method=method, source=source, told=self._told)
        if isinstance(feeds, Feedings):
            found = replace(found, samples=feeds.count)
        self.statistics = found if self.statistics is None else self.statistics.joined(found)

    def _is_compensated(self, plan: InsertQdq, linear: LinearLayer) -> bool:
        """Whether a weight is to be rounded with compensation."""
        scheme = plan.scheme_for(linear.layer)
        if scheme is None or linear.transpose is not None or not scheme.weights.is_integer:
            return False
        if self.options.compensate is None:
            return self._data is not None and scheme.weights.dtype.bitwidth <= _FOUR_BITS
        return self.options.compensate

    def _compensate(
        self, graph: Graph, item: TracedProgram, wanted: Sequence[LinearLayer], plan: InsertQdq
    ) -> None:
        """Round weights that were not before, each with the second moments of its activation."""
        new = [linear for linear in wanted if linear.weight.name not in self._rounded]
        feeds = self._feeds(item) if new else None
        if feeds is None:
            return
        by_name = {linear.weight.name: linear for linear in new}
        for name, moments in second_moments(graph, new, feeds, told=self._told):
            self._told(f"round {name} with compensation")
            linear = by_name[name]
            scheme = plan.scheme_for(linear.layer)
            assert scheme is not None and linear.weight.const_value is not None
            weight = linear.weight.const_value.numpy()
            weight = weight.T if linear.channel_axis == 0 else weight
            self._rounded[name] = compensate(weight, moments, scheme.weights)

    def manifest(self) -> dict[str, Any]:
        """What an artifact says of how it was quantized: JSON-ready."""
        fields: dict[str, Any] = {
            "keep": list(self.options.keep),
            "choices": dict(self.options.choices),
            **({"budget": self.budget} if self.budget else {}),
            "compensated": len(self._rounded),
            "deviation": {name: found.rms for name, found in self._deviations.items()},
        }
        if self.statistics is not None:
            fields |= {
                "source": self.statistics.source,
                "method": self.statistics.method,
                "samples": self.statistics.samples,
                "statistics": self.statistics.digest,
            }
        return fields

    def save(self) -> None:
        """Write the statistics, where that was asked for."""
        if self.options.save is None:
            return
        if self.statistics is None:
            raise UsageError(
                "There are no statistics to save: this precision needs none",
                hint="int8 and fp8 are calibrated; leave --save-calibration out",
            )
        self.statistics.save(self.options.save)


def _has_ranges(plan: InsertQdq, linear: LinearLayer) -> bool:
    """Whether the range of what a product multiplies must be known."""
    scheme = plan.scheme_for(linear.layer)
    return scheme is not None and scheme.activations is not None and not scheme.activations.dynamic
