"""Whether the token ids of samples are rows of the table that a model looks them up in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.program import Case, Program, fit_sizes
from omnigraph.quantization.data import CalibrationData
from omnigraph.tracing.indexed_tables import indexed_rows
from omnigraph.tracing.reference import reference_for

#: Positions of the inputs with which a module is run to see its tables.
_LENGTH = 8


def check_ids(programs: Iterable[Program], data: CalibrationData) -> None:
    """Refuse samples with integers that a program looks up in a table which has no such row.

    Raises:
        UsageError: naming the sample, the input, the position and the range.
    """
    for program in programs:
        if data.suits(program.inputs):
            _check(program, _rows(program), data)


def _rows(program: Program) -> Mapping[str, int]:
    """The rows of the table that each input indexes; none are known where the module fails."""
    sizes = fit_sizes(program, {"batch": 1, "past": 0}, _LENGTH)
    try:
        with indexed_rows(program.module) as rows:
            reference_for(program, Case("tables", sizes))
    except Exception:  # whatever the module raises: its trace says so
        return {}
    return rows


def _check(program: Program, rows: Mapping[str, int], data: CalibrationData) -> None:
    for number, raw in enumerate(islice(data.read(), data.samples) if rows else (), 1):
        sample = data.named(raw, program.inputs)
        for name in rows.keys() & sample.keys():
            ids = np.asarray(sample[name])
            wrong = (ids < 0) | (ids >= rows[name]) if ids.dtype.kind in "iu" else np.zeros(0)
            if wrong.any():
                position = [int(axis) for axis in np.argwhere(wrong)[0]]
                raise UsageError(
                    f"Input {name!r} of program {program.name!r} has a value outside its range, at "
                    f"{position}, in sample {number} of {data.source}",
                    expected=f"0 to {rows[name] - 1}",
                    found=str(ids[tuple(position)]),
                    hint="the model looks the number up in a table, which has rows for these "
                    "alone: is this the model's own tokenizer?",
                )
