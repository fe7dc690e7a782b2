"""Passes by name, with options; anyone's own; and edits of a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnigraph.errors import UsageError
from omnigraph.passes.base import pass_name, purpose
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.eliminate_identities import EliminateIdentities
from omnigraph.passes.fold_constants import FoldConstants
from omnigraph.passes.registry import describe_options, installed_passes, make_pass

PIPELINE = (FoldConstants(), EliminateIdentities(), EliminateDeadCode())


def names(pipeline) -> list[str]:
    return [pass_.name for pass_ in pipeline]


@pytest.mark.parametrize("name", installed_passes())
def test_a_pass_is_a_file_and_says_in_one_line_what_it_is_for(name: str):
    kind = installed_passes()[name]
    assert kind.__module__ == f"omnigraph.passes.{name.replace('-', '_')}"
    assert pass_name(kind) == name
    assert 10 < len(purpose(kind)) <= 100
    assert purpose(kind).endswith(".")
    assert kind().name == name  # every option has a default


def test_options_follow_the_name():
    assert make_pass("convert-precision:precision=bf16:fp32_ops=('Erf',)") == ConvertPrecision(
        "bf16", ("Erf",)
    )
    assert make_pass("convert-precision:fp32_ops=Erf") == ConvertPrecision(fp32_ops=("Erf",))
    assert describe_options(ConvertPrecision) == ["precision=fp16", "fp32_ops=()"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse-everything", "There is no pass 'fuse-everything'"),
        ("", "There is no pass ''"),
        ("convert-precision:depth=3", "has no option 'depth'"),
        ("decompose-attention:largest_head=many", "cannot be 'many'"),
        ("decompose-attention:separate=1", "cannot be '1'"),
        ("nowhere.py:Mine", "nowhere.py cannot be imported"),
        ("omnigraph.errors:OmniGraphError", "There is no pass"),
        ("omnigraph.passes.fuse_gelu:FuseGeLu", "hint: did you mean 'FuseGelu'? "),
    ],
)
def test_what_is_no_pass_is_refused(text: str, message: str):
    with pytest.raises(UsageError, match="hint:") as refused:
        make_pass(text)
    assert message in str(refused.value)


def test_anyone_s_pass_is_found_by_its_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from omnigraph.passes.base import Pass\n"
        "@dataclass(frozen=True)\n"
        "class CountNodes(Pass):\n"
        "    '''Count.'''\n"
        "    limit: float = 0.5\n"
        "    def apply(self, graph):\n"
        "        return False\n"
    )
    found = make_pass(f"{path}:CountNodes:limit=2")
    assert found.name == "count-nodes"
    assert found.options == {"limit": 2}
