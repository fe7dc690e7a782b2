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
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    warmup: int = 2,
    rest: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of one call of each contestant, called in turn for about ``seconds``.

    A machine that slows down slows all of them, so their ratios hold.

    Args:
        rest: seconds of sleep before each call. Threads of onnxruntime go on spinning for a while
            after a call, and would take a core from whoever comes next.
        clock: what one call is timed with, in seconds; ``seconds`` is of the wall clock.
    """
    for call in contestants.values():
        for _ in range(warmup):
            call()
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(samples.values()))) < 5:
        for name, call in contestants.items():
            time.sleep(rest)
            start = clock()
            call()
            samples[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def in_new_process(code: str, *arguments: str) -> dict[str, Any]:
    """Run Python code that leaves a dict ``result``; that, and the peak memory in bytes.

    Peak memory is the most that was resident in the process, as the kernel accounted it, or in
    the process and all that it started, added up 20 times a second, whichever is more.
    """
    probe = (
        f"{code}\nimport json as _j\n"
        "_peak = open('/proc/self/status').read().split('VmHWM:')[1].split()[0]\n"
        "print(_j.dumps({**result, 'peak_bytes': int(_peak) * 1024}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", probe, *arguments], stdout=subprocess.PIPE, text=True
    )
    sampled = 0
    while process.poll() is None:
        sampled = max(sampled, _resident_tree(process.pid))
        time.sleep(0.05)
    text = process.stdout.read() if process.stdout is not None else ""
    if process.returncode:
        raise SystemExit(f"a benchmark's process failed with status {process.returncode}")
    result = json.loads(text.splitlines()[-1])
    result["peak_bytes"] = max(result["peak_bytes"], sampled)
    return result


def _resident_tree(root: int) -> int:
    """Resident bytes of a process and its descendants; 0 where the system does not tell."""
    parents, sizes = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            sizes[int(path.name)] = int((path / "statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        parents[int(path.name)] = int(fields[1])
    family = {root}
    while more := {p for p, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(sizes.get(p, 0) for p in family) * os.sysconf("SC_PAGE_SIZE")


#: Extensions of x86 that decide which kernels the runtimes choose.
_EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
        about = {key.strip(): value.strip() for key, _, value in lines}
        name, flags = about.get("model name", name), about.get("flags", "")
    return {
        "processor": name,
        "extensions": [flag for flag in _EXTENSIONS if flag in flags.split()],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


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
