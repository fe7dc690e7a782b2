"""What tests of the documentation read: fenced blocks with their marks, headings and links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: README first, as a reader meets them.
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
)

_MARK = re.compile(r"<!-- (slow|not run: \S.*) -->")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Args:
        line: the line of the page that its first line of text is on, from 1.
        marks: "slow", or "not run: REASON", from comments on the lines right before the block.
    """

    line: int
    language: str
    text: str
    marks: tuple[str, ...] = ()

    @property
    def slow(self) -> bool:
        """Whether the fast suite leaves it out."""
        return "slow" in self.marks

    @property
    def skipped(self) -> bool:
        """Whether no test can run it."""
        return any(mark.startswith("not run: ") for mark in self.marks)

    @property
    def file_name(self) -> str | None:
        """The name of the Python file that it shows, from its first line: ``# mine.py``."""
        found = re.match(r"# (\w+\.py)\n", self.text) if self.language == "python" else None
        return found[1] if found else None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a fence is not closed.
    """
    found: list[Block] = []
    lines = page.splitlines()
    position = 0
    while position < len(lines):
        if not lines[position].startswith("```"):
            position += 1
            continue
        end = next((i for i in range(position + 1, len(lines)) if lines[i] == "```"), None)
        if end is None:
            raise ValueError(f"the fence on line {position + 1} is not closed")
        text = "".join(line + "\n" for line in lines[position + 1 : end])
        language = lines[position].removeprefix("```").strip()
        found.append(Block(position + 2, language, text, _marks(lines[:position])))
        position = end + 1
    return found


def _marks(before: list[str]) -> tuple[str, ...]:
    """The marks on the last of some lines."""
    marks = []
    for line in reversed(before):
        found = _MARK.fullmatch(line)
        if found is None:
            break
        marks.append(found[1])
    return tuple(reversed(marks))


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.S | re.M)


def links(page: str) -> list[str]:
    """What the links of a page point to."""
    return _LINK.findall(prose(page))


def inline_code(page: str) -> list[str]:
    """What stands between backticks in the prose of a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    return {slug for slug, _ in sections(page)}


def sections(page: str) -> Iterator[tuple[str, str]]:
    """Each heading's anchor, and the text up to the next heading."""
    parts = re.split(r"^#+ (.+)$", prose(page), flags=re.M)[1:]
    for heading, text in zip(parts[::2], parts[1::2], strict=True):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        yield kept.replace(" ", "-"), text
