"""Input sets for the contract that are like a model's real inputs, not drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from omnigraph.program import Case, Program, TensorSpec, fit_sizes, mask_of
from omnigraph.quantization.data import CalibrationData, Feeds
from omnigraph.tracing.reference import reference_for

#: Samples that token ids are taken from.
_ENOUGH_SAMPLES = 32
#: Between the seeds of an input set and of what lies in its past.
_PAST_SEED = 100
#: Roles of numbers that data give: drawn ones would leave the ranges of real ones.
_NUMBERS = ("features", "embeddings", "")
#: Dimensions that count the positions of a call.
_POSITIONS = ("decoder_sequence", "sequence")


def with_real_inputs(
    programs: Sequence[Program], data: CalibrationData | None = None
) -> tuple[Program, ...]:
    """Programs with real input sets: ids and numbers of ``data``, and outputs of other programs.

    Args:
        programs: of one model.
        data: samples; None leaves ids and numbers as they are drawn.
    """
    real = [_with_real_values(p, data) for p in programs] if data is not None else list(programs)
    return tuple(_with_real_past(_with_given(program, real)) for program in real)


def _with_real_values(program: Program, data: CalibrationData) -> Program:
    """A program whose own input sets have ids and numbers from ``data`` where that has them."""
    ids: dict[str, list[np.ndarray]] = {}
    numbers: dict[str, list[np.ndarray]] = {}
    for raw in islice(data.read(), _ENOUGH_SAMPLES):
        sample = data.named(raw, program.inputs)
        for spec in program.inputs:
            if spec.name in sample and spec.role == "tokens":
                ids.setdefault(spec.name, []).append(_shown(sample, spec, program))
            elif spec.name in sample and spec.role in _NUMBERS and spec.dtype == "float32":
                numbers.setdefault(spec.name, []).append(np.asarray(sample[spec.name]))
    texts = {name: _Texts(parts) for name, parts in ids.items() if any(map(len, parts))}
    masks = {s.name: mask_of(s, program.inputs) for s in program.inputs if s.name in texts}
    make = program.make_inputs

    def make_inputs(case: Case) -> dict[str, Any]:
        inputs = make(case)
        for name, text in texts.items():
            if name in inputs and inputs[name].ndim == 2:
                mask = masks[name]
                shown = np.asarray(inputs[mask.name]) if mask and mask.name in inputs else None
                inputs[name] = inputs[name].new_tensor(text.rows(inputs[name].shape, case, shown))
        for name, samples in numbers.items():
            if name in inputs:
                found = _of_shape(samples[case.seed % len(samples)], inputs[name].shape)
                inputs[name] = inputs[name] if found is None else inputs[name].new_tensor(found)
        return inputs

    return replace(program, make_inputs=make_inputs)


def _of_shape(sample: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A sample cut to a shape, or repeated to fill it; None where it has other axes, or nothing."""
    if sample.ndim != len(shape) or not sample.size:
        return None
    for axis, size in enumerate(shape):
        sample = np.take(sample, np.arange(size) % sample.shape[axis], axis=axis)
    return sample


class _Texts:
    """The token ids of some samples, one after the other."""

    def __init__(self, samples: Sequence[np.ndarray]) -> None:
        self._stream = np.concatenate(samples)
        ends = np.cumsum([len(sample) for sample in samples])
        self._starts = np.unique([0, *ends[:-1]])

    def rows(self, shape: tuple[int, int], case: Case, shown: np.ndarray | None) -> np.ndarray:
        """Ids [rows, positions]: each row is a sample from its beginning, and what follows it.

        A model may treat the first token, or the one that begins every text, like no other: the
        first position that a mask shows gets it, and what follows a past goes on behind it.

        Args:
            shown: the mask [rows, positions], if there is one.
        """
        rows, length = shape
        chosen = (np.arange(rows) + case.seed % _PAST_SEED) % len(self._starts)
        begin = self._starts[chosen]
        if case.sizes.get("past"):
            begin = begin + case.sizes["past"]
        elif shown is not None and shown.shape == (rows, length):
            begin = begin - np.argmax(shown != 0, axis=1)
        return np.asarray(self._stream[(begin[:, None] + np.arange(length)) % self._stream.size])


def _shown(sample: Feeds, tokens: TensorSpec, program: Program) -> np.ndarray:
    """The token ids of a sample that its mask does not hide, one after the other."""
    ids = np.asarray(sample[tokens.name])
    mask = mask_of(tokens, program.inputs)
    if mask is None or mask.name not in sample:
        return ids.reshape(-1)
    return ids[np.asarray(sample[mask.name]).astype(bool)]


def _with_given(program: Program, programs: Sequence[Program]) -> Program:
    """A program that takes outputs of others, such as an encoder's: its input sets hold them."""
    takes = {spec.name for spec in program.inputs}
    others = [p for p in programs if p is not program and takes.intersection(p.outputs)]
    if not others:
        return program
    make = program.make_inputs

    def make_inputs(case: Case) -> dict[str, Any]:
        inputs = make(case)
        for other in others:
            sizes = fit_sizes(other, case.sizes)
            outputs = reference_for(other, replace(case, sizes=sizes)).outputs
            for name in takes.intersection(outputs):
                if inputs[name].shape == outputs[name].shape:
                    inputs[name] = inputs[name].new_tensor(outputs[name])
        return inputs

    return replace(program, make_inputs=make_inputs)


def _with_real_past(program: Program) -> Program:
    """A program whose input sets have a past that the program itself computed.

    It is left as it is where it has no state, or takes too few positions at once for a past.
    """
    if not program.state:
        return program
    make = program.make_inputs

    def make_inputs(case: Case) -> dict[str, Any]:
        inputs = make(case)
        past, positions = case.sizes.get("past", 0), _own_positions(program)
        if not past or positions is None:
            return inputs
        sizes = fit_sizes(program, {**case.sizes, positions: past, "past": 0})
        if (sizes[positions], sizes["past"]) != (past, 0):
            return inputs
        before = replace(program, make_inputs=make)
        outputs = reference_for(
            before, Case("past", sizes, case.padding, case.seed + _PAST_SEED)
        ).outputs
        for taken, given in program.state:
            if inputs[taken].shape == outputs[given].shape:
                inputs[taken] = inputs[taken].new_tensor(outputs[given])
        return inputs

    return replace(program, make_inputs=make_inputs)


def _own_positions(program: Program) -> str | None:
    """The dimension by which the past grows."""
    for dim in _POSITIONS:
        if f"past + {dim}" in program.dims and dim in program.dim_names():
            return dim
    return None
