"""Errors say what failed, what was expected and found, and what to try next."""

from __future__ import annotations

import ast

import pytest
from test_imports import ALL

from omnigraph import errors
from omnigraph.errors import ContractError, OmniGraphError, UsageError

KINDS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, OmniGraphError)
}


def test_the_text_is_one_paragraph_and_a_hint():
    error = UsageError("Dimension 'x' is bad.", expected="1:8", found=9, hint="make it smaller")
    assert str(error) == "Dimension 'x' is bad: expected 1:8, found 9.\nhint: make it smaller"
    assert error.to_dict() == {
        "kind": "usage",
        "message": "Dimension 'x' is bad.",
        "expected": "1:8",
        "found": 9,
        "hint": "make it smaller",
    }


def test_exit_status_tells_a_failed_check_from_bad_input():
    assert ContractError("x").exit_status == 1
    assert UsageError("x").exit_status == 2


@pytest.mark.parametrize("name", [n for n in ALL if "models" not in n])
def test_every_error_that_is_raised_has_a_hint(name: str):
    tree = ast.parse(ALL[name].read_text(encoding="utf-8"))
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name))
    missing = [
        call.lineno
        for call in calls
        if call.func.id in KINDS and not any(k.arg in ("hint", None) for k in call.keywords)
    ]
    assert not missing, f"{ALL[name].name}: lines {missing}"
