"""The types of the matrix products in an engine, read from the programs in its file."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

#: A program begins with this mark, four bytes of version and eight of its text's length.
_MARK, _TEXT_AT = b"NLYM", 16
_LONGEST_TEXT = 1 << 26
_TYPES = {"half": "fp16", "float": "fp32", "bf16": "bf16", "fp8_e4m3": "fp8"}
_NARROW = ("int4", "int8", "fp8")
_TENSOR = re.compile(r'^\s*(?:sub_)?tensor=\{.* name="([^"]*)" .* type=(\w+) \}', re.MULTILINE)
_INPUTS = re.compile(r"^  inputs=\{([^}]*)\}", re.MULTILINE)
_PRODUCT = re.compile(r'^\s*fully_connected=\{ name="([^"]*)".*? input=\{([^}]*)\}', re.MULTILINE)
_NAME = re.compile(r'"([^"]*)"')


def product_types(path: Path) -> dict[str, int]:
    """How many products of matrices an engine has, by the types of their factors.

    "int8" is a product of two int8 factors, "fp16 x int4" one whose weights are dequantized as they
    are read. Products inside attention kernels are not counted. Empty where an engine does not have
    the format of TensorRT-RTX 1.7.
    """
    found: dict[str, str] = {}
    for text in _programs(path):
        types = {name: _TYPES.get(kind, kind) for name, kind in _TENSOR.findall(text)}
        head = _INPUTS.search(text)
        given = {types.get(name) for name in _NAME.findall(head[1])} if head else set()
        # A fused kernel is a program of its own, which reads its weights as they are stored.
        stored = next((kind for kind in _NARROW if kind in given), None)
        for name, inputs in _PRODUCT.findall(text):
            one, other = (types.get(factor, "?") for factor in _NAME.findall(inputs)[:2])
            if one == other and one not in _NARROW and stored is not None:
                other = stored
            found[name] = one if one == other else f"{one} x {other}"
    return dict(sorted(Counter(found.values()).items()))


def _programs(path: Path) -> Iterator[str]:
    """The text of each program in an engine."""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = data.find(_MARK)
        while position >= 0:
            start = position + _TEXT_AT
            length = int.from_bytes(data[position + 8 : start], "little")
            if length <= _LONGEST_TEXT and data[start : start + 6] == b"header":
                yield data[start : start + length].decode(errors="replace")
            position = data.find(_MARK, position + 1)
