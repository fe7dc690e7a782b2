"""Timing on noisy machines: contestants take turns, and what is quoted are medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def take_turns(
    contestants: Mapping[str, Callable[[], object]], *, seconds: float, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of one call of each contestant, called in turn for about ``seconds``.

    A machine that slows down slows all of them, so their ratios hold.
    """
    for call in contestants.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, call in contestants.items():
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def in_new_process(code: str, *arguments: str) -> dict[str, Any]:
    """Run Python code that prints one JSON object last; its result, and the peak memory in bytes.

    Peak memory is the resident set as the kernel accounted it, of the largest single process.
    """
    probe = (
        f"{code}\nimport resource as _r, json as _j\n"
        "_self = _r.getrusage(_r.RUSAGE_SELF).ru_maxrss\n"
        "_child = _r.getrusage(_r.RUSAGE_CHILDREN).ru_maxrss\n"
        "print(_j.dumps({**result, 'peak_bytes': max(_self, _child) * 1024}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return {"processor": name, "cores": os.cpu_count(), "python": platform.python_version()}


def save(name: str, figures: Mapping[str, Any]) -> None:
    """Write figures to ``benchmarks/results/NAME.json``, with the machine they are from."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **figures}, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table, as the README has it."""
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
