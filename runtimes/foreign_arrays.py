"""What a caller gives as an array: numpy's own, or a tensor of another library."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnigraph.errors import InputError
from omnigraph.runtimes.vendor_errors import message_of


def as_numpy(name: str, value: Any) -> np.ndarray:
    """An input as a plain numpy array, without a copy.

    Raises:
        InputError: it is no array, has masked elements, or cannot be taken through DLPack.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(
            f"Input {name!r} is a masked array",
            expected="an array whose every element has a value",
            found=f"{np.ma.count_masked(value)} masked of {value.size}",
            hint="fill it: array.filled(value); a model hides elements with a mask input",
        )
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except Exception as error:
            raise InputError(
                f"Input {name!r} could not be taken through DLPack",
                found=message_of(error),
                hint="pass a CPU tensor of a numpy dtype that needs no gradient",
            ) from error
    raise InputError(
        f"Input {name!r} is no array",
        expected="a numpy array, or a tensor that has __dlpack__",
        found=type(value).__name__,
        hint="wrap it: numpy.asarray(value, dtype=…)",
    )
