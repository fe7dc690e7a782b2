"""Every command and every piece of Python in the documentation runs, page by page."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_blocks import PAGES, ROOT, blocks
from page_runner import run_page

TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
RUN = [page for page, text in TEXTS.items() if blocks(text)]
SLOW = [page for page in RUN if any(block.slow for block in blocks(TEXTS[page]))]


@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run(page: str, tmp_path: Path, given_files):
    given_files(TEXTS[page], tmp_path)
    printed = run_page(TEXTS[page], tmp_path)
    for picture in (block.text for block in blocks(TEXTS[page]) if "[before " in block.text):
        assert any(picture.strip() in text for text in printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_the_slow_blocks_of_a_page_run(page: str, tmp_path: Path, given_files):
    given_files(TEXTS[page], tmp_path)
    run_page(TEXTS[page], tmp_path, slow=True)


def test_the_pass_that_is_shown_is_short():
    shown = {b.file_name: b.text for b in blocks(TEXTS["docs/passes.md"]) if b.file_name}
    assert "test_eliminate_double_negation.py" in shown
    lines = shown["eliminate_double_negation.py"].splitlines()
    assert len([line for line in lines if line.strip()]) <= 21


def test_the_readme_is_short():
    assert len(TEXTS["README.md"].splitlines()) <= 120
