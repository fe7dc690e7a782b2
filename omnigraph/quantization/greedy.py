"""The inputs on which an export counts greedy tokens, and the torch model's tokens for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omnigraph.contract.greedy_tokens import GreedyTokens, greedy_reference
from omnigraph.contract.reference import Reference
from omnigraph.program import Program, TensorSpec
from omnigraph.quantization.data import RANDOM, CalibrationData, Feeds, beginning
from omnigraph.quantization.samples import Samples
from omnigraph.tracing.reference import reference_on

#: Positions whose tokens are counted, at most, and those that torch computes at once.
_POSITIONS, _AT_ONCE = 1024, 512


def greedy_tokens(
    program: Program,
    references: Sequence[Reference],
    outputs: Sequence[TensorSpec],
    samples: Samples | None,
) -> GreedyTokens:
    """The greedy tokens of a program's torch module; none where it has no logits of tokens.

    The inputs are those of the evaluation data, else of the calibration data, else random ones.
    Where none of these suits the program, or nothing is quantized, they are the contract's, whose
    outputs are known.

    Args:
        references: of the contract.
        outputs: the program's, with their roles; no output is left out yet.
        samples: of an export that quantizes.

    Raises:
        TraceError: the module does not run on the data.
    """
    known = _of(references, program, outputs)
    if not known:
        return GreedyTokens()
    for source, feeds in _sources(program, samples):
        if found := _of(_computed(feeds, program), program, outputs):
            return GreedyTokens(found, source)
    ids = RANDOM if samples is None or samples.data is None else f"ids of {samples.data.source}"
    return GreedyTokens(known, f"the contract's inputs, with {ids}")


def _sources(program: Program, samples: Samples | None) -> Iterator[tuple[str, Iterator[Feeds]]]:
    """The names and the samples of what suits a program, the best first."""
    if samples is None:
        return
    data = samples.evaluation or samples.data
    if data is not None and data.suits(program.inputs):
        yield data.source, _from(data, program)
    if program.name in samples.drawn:
        yield RANDOM, iter(samples.drawn[program.name])


def _of(
    references: Sequence[Reference] | Iterator[Reference],
    program: Program,
    outputs: Sequence[TensorSpec],
) -> list[Reference]:
    found = (greedy_reference(r, program.inputs, outputs) for r in references)
    return [reference for reference in found if reference is not None]


def _from(data: CalibrationData, program: Program) -> Iterator[Feeds]:
    """Samples of some data, not larger than torch is to compute at once."""
    for feeds in data.feeds(program.inputs):
        short = beginning(feeds, program.inputs, program.dims, _AT_ONCE)
        rows = max(1, _AT_ONCE // max(1, _positions(short, program) // _batch(short, program)))
        yield {
            spec.name: short[spec.name][:rows] if spec.shape[:1] == ("batch",) else short[spec.name]
            for spec in program.inputs
        }


def _computed(samples: Iterator[Feeds], program: Program) -> Iterator[Reference]:
    """torch's outputs for samples, one after the other, until there are enough positions."""
    positions = 0
    for feeds in samples:
        if positions >= _POSITIONS:
            return
        if not _allowed(feeds, program):
            continue
        positions += _positions(feeds, program)
        yield reference_on(program, feeds)


def _allowed(feeds: Feeds, program: Program) -> bool:
    """Whether a program takes these sizes: data may lack a past that it needs."""
    return all(
        size in program.dims[dim]
        for spec in program.inputs
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True)
        if isinstance(dim, str) and dim in program.dims
    )


def _positions(feeds: Feeds, program: Program) -> int:
    return max(feeds[spec.name].size for spec in program.inputs if spec.role == "tokens")


def _batch(feeds: Feeds, program: Program) -> int:
    return next(len(feeds[spec.name]) for spec in program.inputs if spec.role == "tokens")
