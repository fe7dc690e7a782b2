"""What an engine says of the products in it: its programs stand in its file as text."""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

#: Each program begins with this, four bytes of a version, and eight of the length of its text.
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

    "int8" is a product of two int8 factors, "fp16 x int4" one whose weights are widened as they are
    read. Attention's products are within its kernel, and not among them. Empty where an engine is
    not of the form that TensorRT-RTX 1.7 writes.
    """
    found: dict[str, str] = {}
    for text in _programs(path):
        types = {name: _TYPES.get(kind, kind) for name, kind in _TENSOR.findall(text)}
        head = _INPUTS.search(text)
        given = {types.get(name) for name in _NAME.findall(head[1])} if head else set()
        # A fused kernel is a program of its own, which is given its weights as they are stored.
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
