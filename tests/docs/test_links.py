"""Every link of the documentation leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_blocks import PAGES, ROOT, anchors, inline_code, links


def broken(page: Path, text: str) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of it."""

    def read(target: Path) -> str:
        return text if target == page else target.read_text(encoding="utf-8")

    found = []
    for link in links(text):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not (target.exists() and (not anchor or anchor in anchors(read(target)))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert broken(ROOT / page, text) == []


def test_every_page_is_reached_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    reached = {link.partition("#")[0] for link in links(readme)}
    assert {*PAGES} - reached == {"README.md"}


@pytest.mark.parametrize(
    "link", ["nothing.md", "docs/passes.md#nothing", "#nothing", "docs/nothing.py"]
)
def test_a_broken_link_is_found(link: str):
    text = f"# Here\n\n[this](docs/passes.md#the-order), [that](#here) and [a third]({link})\n"
    assert broken(ROOT / "README.md", text) == [link]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str):
    folders = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir())
    named = inline_code((ROOT / page).read_text(encoding="utf-8"))
    paths = [name for name in named if name.startswith(folders) and not set(name) & set("<>* ")]
    assert [name for name in paths if not (ROOT / name).exists()] == []
