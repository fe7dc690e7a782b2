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
#: Dimensions that count the positions of a call.
_POSITIONS = ("decoder_sequence", "sequence")


def with_real_inputs(
    programs: Sequence[Program], data: CalibrationData | None = None
) -> tuple[Program, ...]:
    """Programs with real input sets: token ids from ``data``, and outputs of other programs.

    Args:
        programs: of one model.
        data: samples with token ids; None leaves the ids as they are drawn.
    """
    real = [_with_real_ids(p, data) for p in programs] if data is not None else list(programs)
    return tuple(_with_real_past(_with_given(program, real)) for program in real)


def _with_real_ids(program: Program, data: CalibrationData) -> Program:
    """A program whose own input sets have token ids from ``data`` where that has them."""
    streams: dict[str, list[np.ndarray]] = {}
    for raw in islice(data.read(), _ENOUGH_SAMPLES):
        sample = data.named(raw, program.inputs)
        for spec in program.inputs:
            if spec.name in sample and spec.role == "tokens":
                streams.setdefault(spec.name, []).append(_shown(sample, spec, program))
    ids = {name: np.concatenate(parts) for name, parts in streams.items()}
    make = program.make_inputs

    def make_inputs(case: Case) -> dict[str, Any]:
        inputs = make(case)
        for name, stream in ids.items():
            if name in inputs and stream.size and inputs[name].ndim == 2:
                rows, length = inputs[name].shape
                starts = (np.arange(rows) + case.seed) * length
                place = (starts[:, None] + np.arange(length)) % stream.size
                inputs[name] = inputs[name].new_tensor(stream[place])
        return inputs

    return replace(program, make_inputs=make_inputs)


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
        outputs = reference_for(before, Case("past", sizes, case.padding, case.seed + 100)).outputs
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
