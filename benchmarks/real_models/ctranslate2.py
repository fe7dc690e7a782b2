"""Reads the weights of a model of CTranslate2.

A file is little-endian: version, name of the model, revision, and the tensors, each with its name,
shape, type and bytes (``model_spec.py`` of CTranslate2, ``ModelSpec._serialize``).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

_DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")


def tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a ``model.bin``, by name."""
    with path.open("rb") as file:
        _integer(file, "I")
        _text(file)
        _integer(file, "I")
        return dict(_tensor(file) for _ in range(_integer(file, "I")))


def _tensor(file: BinaryIO) -> tuple[str, np.ndarray]:
    name = _text(file)
    shape = [_integer(file, "I") for _ in range(_integer(file, "B"))]
    dtype = _DTYPES[_integer(file, "B")]
    return name, np.frombuffer(file.read(_integer(file, "I")), dtype).reshape(shape)


def _text(file: BinaryIO) -> str:
    return file.read(_integer(file, "H")).rstrip(b"\0").decode()


def _integer(file: BinaryIO, kind: str) -> int:
    (number,) = struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))
    return int(number)
