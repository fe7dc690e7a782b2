"""The samples of an export, for calibration and for measuring a loss."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from omnigraph.export_job import TracedProgram
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.program import Program
from omnigraph.quantization.data import RANDOM, CalibrationData, Feeds, open_data, random_data
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.real_inputs import with_real_inputs


@dataclass(frozen=True)
class Samples:
    """Where the samples of each program come from.

    Args:
        data: DATA for calibration, if any was given.
        evaluation: DATA for the loss, if any was given.
        drawn: by program, samples with random token ids, where no DATA was given.
    """

    data: CalibrationData | None = None
    evaluation: CalibrationData | None = None
    drawn: Mapping[str, Sequence[Feeds]] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The name of the calibration data, for a person."""
        return RANDOM if self.data is None else self.data.source

    @property
    def evaluation_source(self) -> str:
        """The name of the evaluation data, for a person."""
        return RANDOM if self.evaluation is None else self.evaluation.source

    def of(self, item: TracedProgram) -> Iterable[Feeds] | None:
        """The calibration samples of a program; None where there are none."""
        if self.data is not None and self.data.suits(item.inputs):
            return self.data.feeds(item.inputs, item.dims)
        return self._drawn(item)

    def for_loss(self, item: TracedProgram) -> Iterator[tuple[Feeds, Feeds]]:
        """For each evaluation sample, the inputs of a program, and all that the data contain."""
        if self.evaluation is None:
            yield from ((feeds, feeds) for feeds in self._drawn(item) or ())
        elif self.evaluation.suits(item.inputs):
            given = islice(self.evaluation.read(), self.evaluation.samples)
            yield from zip(self.evaluation.feeds(item.inputs), given, strict=True)

    def _drawn(self, item: TracedProgram) -> list[Feeds] | None:
        """The random samples, with empty pasts in the types that the program takes."""
        if (drawn := self.drawn.get(item.name)) is None:
            return None
        types = {spec.name: np.dtype(spec.dtype) for spec in item.inputs}
        return [{name: a.astype(types[name], copy=False) for name, a in f.items()} for f in drawn]


@dataclass(frozen=True)
class Prepared:
    """The input of quantization.

    Args:
        samples: for calibration and for the loss.
        facts: known before calibration: statistics from a file, if any.
        programs: to export. The input sets of their contract are like real ones, since ranges do
            not fit random ids and random pasts.
    """

    samples: Samples
    facts: QuantizationFacts
    programs: tuple[Program, ...]


def prepare(options: Quantization, programs: Sequence[Program]) -> Prepared:
    """Open the data for calibration and for the loss, and check that they suit the programs.

    Raises:
        UsageError: they cannot be read, or suit none of the programs.
    """
    data, evaluation, facts = None, None, QuantizationFacts()
    drawn: dict[str, list[Feeds]] = {}
    given = options.calibration
    if given is None:
        real = with_real_inputs(programs)
        drawn = {program.name: random_data(program, options.samples) for program in real}
    elif Statistics.is_saved(given):
        assert isinstance(given, str | os.PathLike)
        facts = QuantizationFacts(Statistics.load(given))
        real = with_real_inputs(programs)
    else:
        data = evaluation = _opened(given, options, programs)
        real = with_real_inputs(programs, data)
    if options.evaluation is not None:
        evaluation = _opened(options.evaluation, options, programs)
    return Prepared(Samples(data, evaluation, drawn), facts, real)


def _opened(given: object, options: Quantization, programs: Sequence[Program]) -> CalibrationData:
    data = open_data(given, tokenizer=options.tokenizer, samples=options.samples)
    data.check(programs)
    return data
