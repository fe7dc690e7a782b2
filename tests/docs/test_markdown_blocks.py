"""What reads the documentation finds its blocks, and what runs it finds what is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from markdown_blocks import PAGES, ROOT, anchors, blocks
from page_runner import PageError, check_usage, run_page

PAGE = """# A `page`, it's one

<!-- slow -->
<!-- not run: needs a GPU -->
```sh
omnigraph targets
```

```python
# mine.py
x = 1
```
"""


def fenced(language: str, text: str, mark: str = "") -> str:
    return f"{mark}\n```{language}\n{text}\n```\n"


def test_blocks_have_their_lines_languages_and_marks():
    command, code = blocks(PAGE)
    assert (command.line, command.language, command.text) == (6, "sh", "omnigraph targets\n")
    assert command.slow
    assert command.skipped
    assert (code.line, code.file_name) == (10, "mine.py")
    assert not code.slow
    assert not code.skipped
    assert anchors(PAGE) == {"a-page-its-one"}


def test_a_mark_without_a_reason_is_none():
    (block,) = blocks(fenced("sh", "omnigraph targets", "<!-- not run: -->"))
    assert not block.skipped


def test_a_fence_that_is_not_closed_is_refused():
    with pytest.raises(ValueError, match="line 1 is not closed"):
        blocks("```sh\nomnigraph targets\n")


def test_the_documentation_has_blocks_of_each_kind():
    found = Counter(
        block.language
        for page in PAGES
        for block in blocks((ROOT / page).read_text(encoding="utf-8"))
    )
    assert found["sh"] >= 25
    assert found["python"] >= 9
    assert found["mermaid"] == 2
    assert found["toml"] == 1


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (fenced("sh", "omnigraph export nothing.py:f --target onnx"), "line 3: .* ends with 2"),
        (fenced("sh", "omnigraph passes --no-such-option"), "unrecognized arguments"),
        (fenced("sh", "omnigraph verify nothing.omni"), "There is no artifact"),
        (fenced("sh", "rm -r build"), "nothing says why"),
        (fenced("sh", "omnigraph targets && rm -r build"), "ends with 2"),
        (fenced("sh", "make nothing"), "no rule nothing"),
        (fenced("sh", "python -m benchmarks.nothing"), "no module benchmarks.nothing"),
        (fenced("", "omnigraph targets"), "stand in a block of no language"),
        (fenced("text", "$ omnigraph targets"), "stand in a block of text"),
        (fenced("rust", "fn main() {}"), "nothing checks a block of rust"),
        (fenced("python", "import numpy\nnumpy.nothing"), "line 3: .*AttributeError"),
        (fenced("python", "# test_it.py\ndef test_it():\n    assert False"), "expected 1 passed"),
        (fenced("toml", "[project]"), "registers no entry points"),
        (fenced("sh", "omnigraph run a.omni --inptu x=1", "<!-- not run: a GPU -->"), "no usage"),
    ],
)
def test_a_page_that_is_wrong_fails(page: str, message: str, tmp_path: Path):
    with pytest.raises(PageError, match=f"(?s){message}"):
        run_page(page, tmp_path)


def test_what_is_marked_and_what_sets_up_is_not_run(tmp_path: Path):
    page = "".join(
        (
            fenced("sh", "pip install 'omnigraph[onnx]'"),
            fenced("sh", "rm -r build", "<!-- not run: it is only an example -->"),
            fenced("sh", "omnigraph verify nothing.omni", "<!-- not run: needs a GPU -->"),
            fenced("sh", "omnigraph verify nothing.omni", "<!-- slow -->"),
        )
    )
    assert run_page(page, tmp_path) == []
    with pytest.raises(PageError, match="There is no artifact"):
        run_page(page, tmp_path, slow=True)


def test_usage_is_checked_without_a_run():
    check_usage(["export", "nothing.py:f", "--target", "onnx"])
    with pytest.raises(PageError, match="--target"):
        check_usage(["export", "nothing.py:f"])
    with pytest.raises(PageError, match="invalid choice"):
        check_usage(["exprot", "nothing.py:f"])
