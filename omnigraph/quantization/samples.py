"""The samples of an export, for calibration and for measuring a loss."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from omnigraph.export_job import TracedProgram
from omnigraph.passes.analysis.quantization.statistics import Statistics
from omnigraph.passes.calibrated_pass import QuantizationFacts
from omnigraph.program import Program
from omnigraph.quantization.data import (
    RANDOM,
    CalibrationData,
    Feeds,
    fit,
    open_data,
    random_data,
)
from omnigraph.quantization.held_out import hold_out, shared
from omnigraph.quantization.options import Quantization
from omnigraph.quantization.real_inputs import with_real_inputs
from omnigraph.quantization.token_ids import check_ids

#: Where the seeds of random samples for the loss begin; those for calibration begin at 1000.
_OTHER_SEED = 3000
#: Runs a program's Graph in float: inputs by name to outputs by name.
Run = Callable[[Feeds], Feeds]


@dataclass(frozen=True)
class Samples:
    """Where the samples of each program come from.

    Args:
        data: DATA for calibration, if any was given.
        evaluation: DATA for the loss, if any was given.
        drawn: by program, samples with random token ids, where no DATA was given.
        drawn_others: the same, others, for the loss.
        seen: how many samples of ``evaluation`` are calibration samples too.
    """

    data: CalibrationData | None = None
    evaluation: CalibrationData | None = None
    drawn: Mapping[str, Sequence[Feeds]] = field(default_factory=dict)
    drawn_others: Mapping[str, Sequence[Feeds]] = field(default_factory=dict)
    seen: int = 0

    @property
    def source(self) -> str:
        """The name of the calibration data, for a person."""
        return RANDOM if self.data is None else self.data.source

    @property
    def evaluation_source(self) -> str:
        """The name of the evaluation data, for a person."""
        return RANDOM if self.evaluation is None else self.evaluation.source

    @property
    def can_judge(self) -> bool:
        """Whether there is something to measure a loss on."""
        return self.evaluation is not None or bool(self.drawn_others)

    def of(self, item: TracedProgram) -> Iterable[Feeds] | None:
        """The calibration samples of a program; None where there are none."""
        if self.data is not None and self.data.suits(item.inputs):
            return self.data.feeds(item.inputs, item.dims)
        return _typed(self.drawn, item)

    def for_loss(
        self, item: TracedProgram, others: Sequence[tuple[TracedProgram, Run]] = ()
    ) -> Iterator[tuple[Feeds, Feeds]]:
        """For each evaluation sample, the inputs of a program, and all that the data contain.

        Args:
            others: programs of the same model. Their outputs are inputs where the data lack them:
                a decoder takes its encoder's result.
        """
        if self.evaluation is None:
            yield from ((feeds, feeds) for feeds in _typed(self.drawn_others, item) or ())
            return
        needed = {spec.name for spec in item.inputs if spec.default is None}
        for number, raw in enumerate(islice(self.evaluation.read(), self.evaluation.samples), 1):
            where = f"sample {number} of {self.evaluation.source}"
            given = dict(self.evaluation.named(raw, item.inputs))
            for other, run in others:
                lacking = needed - set(given)
                wanted = lacking.intersection(spec.name for spec in other.outputs)
                if wanted and self.evaluation.suits(other.inputs):
                    own = self.evaluation.named(raw, other.inputs)
                    found = run(fit(own, other.inputs, where))
                    given |= {name: found[name] for name in wanted}
            if not needed <= set(given):
                return
            yield fit(given, item.inputs, where), raw


def _typed(drawn: Mapping[str, Sequence[Feeds]], item: TracedProgram) -> list[Feeds] | None:
    """Random samples of a program, with empty pasts in the types that it takes."""
    if item.name not in drawn:
        return None
    types = {spec.name: np.dtype(spec.dtype) for spec in item.inputs}
    return [
        {name: array.astype(types[name], copy=False) for name, array in feeds.items()}
        for feeds in drawn[item.name]
    ]


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


def prepare(
    options: Quantization, programs: Sequence[Program], *, judges: bool = False
) -> Prepared:
    """Open the data for calibration and for the loss, and check that they suit the programs.

    Args:
        judges: whether a loss is to be measured. Without evaluation data, a part of the calibration
            data is held out for it, where they are enough.

    Raises:
        UsageError: they cannot be read, suit none of the programs, or have ids of no token.
    """
    data, evaluation, facts = None, None, QuantizationFacts()
    drawn: dict[str, list[Feeds]] = {}
    others: dict[str, list[Feeds]] = {}
    given = options.calibration
    if given is None:
        real = with_real_inputs(programs)
        drawn = {program.name: random_data(program, options.samples) for program in real}
        if judges:
            others = {p.name: random_data(p, options.samples, seed=_OTHER_SEED) for p in real}
    elif Statistics.is_saved(given):
        assert isinstance(given, str | os.PathLike)
        facts = QuantizationFacts(Statistics.load(given))
        real = with_real_inputs(programs)
    else:
        data = _opened(given, options, programs)
        real = with_real_inputs(programs, data)
    if options.evaluation is not None:
        evaluation = _opened(options.evaluation, options, programs)
    elif data is not None and judges:
        calibration, held = hold_out(data)
        data, evaluation = calibration, held or data
    seen = shared(evaluation, data) if judges and evaluation and data else 0
    return Prepared(Samples(data, evaluation, drawn, others, seen), facts, real)


def _opened(given: object, options: Quantization, programs: Sequence[Program]) -> CalibrationData:
    data = open_data(given, tokenizer=options.tokenizer, samples=options.samples)
    data.check(programs)
    check_ids(programs, data)
    return data
