"""Refuses a ``.pt2`` file that would run code of its own when torch reads it.

``torch.export.load`` unpickles whatever does not load as plain weights, opens compiled libraries,
and evaluates the text of sizes. This module looks at each of these first, with the same reader.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export.pt2_archive import _package, constants
from torch.utils._sympy import functions as torch_functions

from omnigraph.errors import UsageError

#: The key of a size in the JSON of a program, as sympy's ``srepr`` writes it.
_SIZE = "expr_str"
#: Keys of the JSON whose values name a module to import; also in a JSON that is text in it.
_IMPORTS = re.compile(r"default_factory_module|__enum__")
#: A character of ASCII by its number: JSON's other spelling of a key.
_ESCAPE = re.compile(r"\\u00([0-7][0-9a-fA-F])")
#: What the expression of a size consists of.
_SYNTAX = (
    *(ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)


def check_no_code(path: Path) -> None:
    """Refuse a file that runs code when it is read.

    Raises:
        UsageError: naming the first entry that would, and why.
    """
    reader = _package.PT2ArchiveReader(str(path))
    for name in reader.get_file_names():
        for reason in _dangers(reader, name):
            raise UsageError(
                f"{path} would run code of its own when it is read",
                expected="weights and example inputs that are plain tensors, numbers and lists",
                found=f"{reason}, in {name}",
                hint="if you trust the file, load it in a factory of yours with "
                "torch.export.load, and give file.py:factory",
            )


def _dangers(reader: _package.PT2ArchiveReader, name: str) -> Iterator[str]:
    folder = name.rpartition("/")[0] + "/"
    known = name.lower()  # torch's reader finds entries by name in any case
    if known.startswith(constants.AOTINDUCTOR_DIR):
        yield "a compiled library"
    elif known.endswith(".pt"):
        yield from _pickled(reader.read_bytes(name))
    elif known.endswith("_config.json"):
        for payload in json.loads(reader.read_string(name))["config"].values():
            if payload["path_name"].startswith(
                (constants.CUSTOM_OBJ_FILENAME_PREFIX, constants.OPAQUE_OBJ_FILENAME_PREFIX)
            ):
                yield f"the pickled object {payload['path_name']}"
            elif payload["use_pickle"]:
                yield from _pickled(reader.read_bytes(folder + payload["path_name"]))
    elif known.startswith(constants.MODELS_DIR):
        for key, value in _entries(json.loads(reader.read_string(name))):
            if named := _IMPORTS.search(_unescaped(f"{key} {value}")):
                yield f"the name of a module to import ({named[0]})"
            if key == _SIZE and not _is_size(str(value)):
                yield f"a size that is no expression of sizes: {str(value)[:80]}"


def _entries(found: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of a JSON that holds no others, and each key, with the key that it is under."""
    if isinstance(found, dict):
        yield from ((name, "") for name in found if name != _SIZE)
        for name, value in found.items():
            yield from _entries(value, name)
    elif isinstance(found, list):
        for value in found:
            yield from _entries(value, key)
    else:
        yield key, found


def _unescaped(text: str) -> str:
    """A text without escapes of ASCII, however often they are escaped themselves."""
    while (plain := _ESCAPE.sub(lambda m: chr(int(m[1], 16)), text)) != text:
        text = plain
    return text


def _pickled(data: bytes) -> Iterator[str]:
    """Why bytes of ``torch.save`` are no plain tensors, or nothing."""
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        global_ = re.search(r"GLOBAL ([\w.]+)", str(error))
        yield f"a pickle of {global_[1]}" if global_ else "a pickle of more than plain tensors"


def _is_size(text: str) -> bool:
    """Whether a text only names symbols, and calls nothing but sympy's expressions."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except SyntaxError:
        return False
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return (
        all(isinstance(node, _SYNTAX) for node in nodes)
        and all(isinstance(name, ast.Name) and _is_expression(name.id) for name in called)
        and all(text.isidentifier() for text in texts)
    )


def _is_expression(name: str) -> bool:
    """Whether a name is that of a class of sympy's expressions, or of one that torch adds."""
    found = getattr(torch_functions, name, None) or getattr(sympy, name, None)
    return isinstance(found, type) and issubclass(found, sympy.Basic)
