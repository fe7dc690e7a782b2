"""Each figure names its script, and the README's figures are those of the page of figures."""

from __future__ import annotations

import ast
import re

from markdown_blocks import ROOT, prose

FIGURES = (ROOT / "docs/figures.md").read_text(encoding="utf-8")
_SCRIPT = re.compile(r"^Script: `python -m benchmarks\.(\w+)(?: (--\w+))?`$", re.M)
#: A number with what makes it one: 33.5, 1707, +0.212%.
_NUMBER = re.compile(r"[+-]?\d[\d.]*%?")


def figures() -> dict[str, str]:
    """The sections of the page, by heading."""
    parts = re.split(r"^## (.+)$", prose(FIGURES), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_each_section_names_a_script_that_can_be_run():
    sections = figures()
    assert len(sections) >= 11
    for heading, text in sections.items():
        scripts = _SCRIPT.findall(text)
        assert len(scripts) == 1, heading
        name, option = scripts[0]
        source = (ROOT / "benchmarks" / f"{name}.py").read_text(encoding="utf-8")
        defined = {node.name for node in ast.parse(source).body if hasattr(node, "name")}
        assert "main" in defined, heading
        assert option in source, heading


def test_each_figure_of_the_readme_is_on_the_page_of_figures():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Five figures")[2]
    rows = re.findall(r"^\| (.+) \| (.+) \| \[`benchmarks/(\w+)\.py`\]", section, re.M)
    assert len(rows) == 5
    for what, figure, script in rows:
        texts = [text for text in figures().values() if script in _SCRIPT.findall(text)[0]]
        known = {number for text in texts for number in _NUMBER.findall(text)}
        missing = {*_NUMBER.findall(figure)} - known
        assert not missing, f"{what}: {missing}"
