"""The table of all precisions. Targets, budgets and the command line read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """One precision of an artifact, or of a layer.

    Args:
        name: on the command line, in Python and in the manifest.
        floats: the type of floats, unless a target says otherwise.
        bits: of one weight on disk, scales included.
        candidates: precisions that a budget may choose for a layer, the finest first; empty where
            nothing is quantized.
        needs_calibration: whether ranges of activations must be observed.
        carrier: another precision whose passes and runtime it uses; empty is its own.
    """

    name: str
    floats: str
    bits: float
    candidates: tuple[str, ...] = ()
    needs_calibration: bool = False
    carrier: str = ""

    @property
    def quantizes(self) -> bool:
        """Whether it quantizes, to integers or float8."""
        return bool(self.candidates)


#: The choice for a layer that is not quantized.
FLOAT = "float"
#: The precision that chooses one for each layer.
AUTO = "auto"

PRECISIONS: Mapping[str, Precision] = {
    precision.name: precision
    for precision in (
        Precision("fp32", "fp32", 32.0),
        Precision("fp16", "fp16", 16.0),
        Precision("bf16", "bf16", 16.0),
        Precision("int8", "fp32", 8.0, ("int8",), needs_calibration=True),
        Precision("int8-dynamic", "fp32", 8.0, ("int8-dynamic",)),
        Precision("int8-weights", "fp32", 8.0, ("int8-weights",)),
        # Four bits, and a scale and a zero point for each group.
        Precision("int4-weights", "fp32", 4.5, ("int8-weights", "int4-weights")),
        Precision("fp8", "fp32", 8.0, ("fp8",), needs_calibration=True),
        Precision(
            AUTO, "fp32", 8.0, ("int8", "int4-weights"), needs_calibration=True, carrier="int8"
        ),
    )
}

#: The precisions that a target may quantize to.
QUANTIZED = tuple(p.name for p in PRECISIONS.values() if p.quantizes and not p.carrier)

#: Our names of ONNX's float types (``TensorProto.DataType``).
FLOAT_TYPES: Mapping[str, str] = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "FLOAT8E4M3FN": "fp8",
}


def carrier_of(name: str) -> str:
    """The precision whose passes and runtime a precision uses: for "auto" "int8", else itself."""
    found = PRECISIONS.get(name)
    return (found.carrier or name) if found is not None else name


def quantizes(name: str) -> bool:
    """Whether a precision quantizes; one that this version does not know might."""
    found = PRECISIONS.get(name)
    return found is None or found.quantizes


def bits_of(name: str) -> float:
    """Bits of one weight of a layer, in a precision or in float."""
    return PRECISIONS["fp32" if name == FLOAT else name].bits
