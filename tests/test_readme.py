"""The pass and the test that the README shows, as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_pass_of_the_readme_passes_its_own_test(tmp_path: Path):
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    shown = {name: text for name, text in blocks if "double_negation" in name}
    assert len(shown) == 2
    for name, text in shown.items():
        (tmp_path / name).write_text(text)
    code = [line for line in shown["eliminate_double_negation.py"].splitlines() if line.strip()]
    assert len(code) <= 20
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT / 'tests'}:{tmp_path}", "PATH": ""},
        cwd=tmp_path,
        timeout=120,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
