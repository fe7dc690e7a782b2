"""No module, function or list of parameters is too long, and every file name says something."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("omnigraph", "passes", "runtimes", "models", "benchmarks", "tests")
MODULE_LINES, BODY_LINES, PARAMETERS = 400, 50, 8
#: Names that say nothing of what a file or a folder holds.
VAGUE = {"utils", "helpers", "common", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> Iterator[Path]:
    """Python files below a folder, but for what is built and for virtual environments."""
    for folder, inner, files in os.walk(root):
        inner[:] = [
            name
            for name in sorted(inner)
            if not name.startswith(".")
            and name not in ("build", "dist", "__pycache__")
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        ]
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


@cache
def sources() -> dict[str, str]:
    """The text of each module of the repository, by its path from the root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in modules(ROOT)
    }


def functions(text: str) -> Iterator[Function]:
    """Functions and methods, those inside others too."""
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, Function))


def body_lines(function: Function) -> int:
    """Lines from the first statement to the last; a docstring is none."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if not body:
        return 0
    last = body[-1].end_lineno
    assert last is not None
    return last - body[0].lineno + 1


def parameters(function: Function) -> int:
    """How many parameters a caller sees: self and cls are none, ``*args`` is one."""
    found = function.args
    named = [*found.posonlyargs, *found.args]
    bound = bool(named) and named[0].arg in ("self", "cls")
    starred = [argument for argument in (found.vararg, found.kwarg) if argument is not None]
    return len(named) + len(found.kwonlyargs) + len(starred) - bound


def long_modules(texts: Mapping[str, str]) -> list[str]:
    lengths = {path: len(text.splitlines()) for path, text in texts.items()}
    return [f"{path}: {length} lines" for path, length in lengths.items() if length > MODULE_LINES]


def long_functions(texts: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{function.lineno} {function.name}: {body_lines(function)} lines of body"
        for path, text in texts.items()
        for function in functions(text)
        if body_lines(function) > BODY_LINES
    ]


def wide_functions(texts: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{function.lineno} {function.name}: {parameters(function)} parameters"
        for path, text in texts.items()
        for function in functions(text)
        if parameters(function) > PARAMETERS
    ]


def vague_names(texts: Mapping[str, str]) -> list[str]:
    return [
        path
        for path in texts
        for name in Path(path).with_suffix("").parts
        if name.strip("_").removeprefix("test_") in VAGUE
    ]


def test_every_folder_of_code_is_read():
    assert {path.partition("/")[0] for path in sources()} >= set(FOLDERS)
    assert "tests/test_sizes.py" in sources()


@pytest.mark.parametrize("check", [long_modules, long_functions, wide_functions, vague_names])
def test_the_repository_has_none(check: Callable[[Mapping[str, str]], list[str]]):
    found = check(sources())
    assert not found, "\n".join(found)


# The checks themselves ---------------------------------------------------------------------------

DEFINITION = "class A:\n    def f({}):\n        '''Says what.\n\n        And how.\n        '''\n{}"


def method(arguments: str = "self", lines: int = 1) -> dict[str, str]:
    """A module of one method whose body has so many lines."""
    return {"a.py": DEFINITION.format(arguments, "        pass\n" * lines)}


def test_a_long_module_is_found():
    assert not long_modules({"a.py": "x = 1\n" * MODULE_LINES})
    assert long_modules({"a.py": "x = 1\n" * (MODULE_LINES + 1)}) == ["a.py: 401 lines"]


def test_a_long_function_is_found_wherever_it_is():
    assert not long_functions(method(lines=BODY_LINES))
    assert long_functions(method(lines=BODY_LINES + 1)) == ["a.py:2 f: 51 lines of body"]
    inner = "async def g():\n" + "    pass\n" * (BODY_LINES + 1)
    assert long_functions({"a.py": inner}) == ["a.py:1 g: 51 lines of body"]
    assert not long_functions({"a.py": "def f():\n    '''" + "\n" * BODY_LINES + "    '''\n"})


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ("self, a, b, c, d, e, f, g, h", 8),
        ("cls, a, /, b, c, d, e, f, g, h", 8),
        ("self, a, b, c, d, e, f, g, h, i", 9),
        ("a, b, c, d, *, e, f, g, h, i", 9),
        ("a, b, /, c, d, *e, f, g, h, **i", 9),
    ],
)
def test_parameters_of_every_kind_are_counted(arguments: str, count: int):
    (found,) = functions(method(arguments)["a.py"])
    assert parameters(found) == count
    expected = [f"a.py:2 f: {count} parameters"] if count > PARAMETERS else []
    assert wide_functions(method(arguments)) == expected


@pytest.mark.parametrize("path", ["a/utils.py", "helpers/a.py", "_common.py", "a/test_misc.py"])
def test_a_vague_name_is_found(path: str):
    assert vague_names({path: ""}) == [path]


def test_a_name_may_begin_like_a_vague_one():
    assert not vague_names({"a/commonsense.py": "", "passes/miscellany.py": ""})


def test_what_is_built_is_not_read(tmp_path: Path):
    for path in ("a/b.py", "build/c.py", ".venv/d.py", "venv/pyvenv.cfg", "venv/e.py", "f.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in modules(tmp_path)] == ["a/b.py"]
