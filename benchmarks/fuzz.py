"""10,000 damages to artifacts and models: each is refused, noticed, or changes no number.

``python -m benchmarks.fuzz`` runs all, ``--only manifest:17`` one of them again, ``--share 0.02`` a
part. Each damage follows from its number. They are tried in a process of their own, so that one in
which a vendor's runtime dies is counted, and the next is tried. It ends with status 1 where one
ended in a traceback, a crash, a hang or a wrong number.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: How many damages of each kind there are.
COUNTS = {"archive": 4000, "manifest": 4000, "vendor": 1600, "model": 400}
#: The process that tries damages.
WORK = [sys.executable, "-m", "benchmarks.fuzz"]
#: Seconds that one damage may take.
PATIENCE = 120.0
_FAULTS = ("WRONG", "TRACEBACK", "CRASH", "HANG")


def run(kind: str, numbers: Sequence[int], folder: Path) -> Iterator[tuple[int, str]]:
    """What comes of each damage of one kind, by its number."""
    left = list(numbers)
    while left:
        for number, outcome in _worker(kind, list(left), folder):
            left.remove(number)
            yield number, outcome


def _worker(kind: str, numbers: Sequence[int], folder: Path) -> Iterator[tuple[int, str]]:
    """The same, until the process that tries them dies or hangs."""
    command = [*WORK, "--work", kind, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, cwd=ROOT, env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(" ".join(map(str, numbers)))
        process.stdin.close()
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True)
        reader.start()
        for number in numbers:
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                process.kill()
                yield number, f"HANG for {PATIENCE:.0f} s"
                return
            if not line:
                yield number, f"CRASH with status {process.wait()}"
                return
            yield number, json.loads(line)


def _forward(stream: Iterator[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def work(kind: str, numbers: Sequence[int], folder: Path) -> None:
    """Try damages in this process, and print what comes of each."""
    from benchmarks.fuzz_cases import KINDS

    with tempfile.TemporaryDirectory() as scratch, os.fdopen(os.dup(1), "w") as stream:
        os.dup2(2, 1)  # what vendors print is not ours
        kept = KINDS[kind](folder, Path(scratch))
        for number in numbers:
            stream.write(json.dumps(kept.outcome(number)) + "\n")
            stream.flush()


def sample(share: float) -> dict[str, range]:
    """The same part of the numbers of each kind each time, from all over them."""
    step = max(1, round(1 / share))
    return {kind: range(0, count, step) for kind, count in COUNTS.items()}


def faults(found: dict[str, str]) -> list[str]:
    """Those outcomes that must not be, with their damages."""
    return [f"{damage}: {outcome}" for damage, outcome in found.items() if _is_fault(outcome)]


def _is_fault(outcome: str) -> bool:
    return outcome.startswith(_FAULTS)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="KIND[:NUMBER]")
    parser.add_argument("--share", type=float, default=1.0, metavar="PART")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the artifacts are, or are made")
    args = parser.parse_args()
    if args.work:
        work(args.work, [int(text) for text in sys.stdin.read().split()], args.folder)
        return 0
    from benchmarks.fuzz_cases import make_artifacts

    chosen: dict[str, Sequence[int]] = dict(sample(args.share))
    if args.only:
        named = [text.partition(":") for text in args.only]
        chosen = {kind: [int(n)] if n else chosen[kind] for kind, _, n in named}
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        make_artifacts(folder)
        for kind, numbers in chosen.items():
            for number, outcome in run(kind, numbers, folder):
                found[f"{kind}:{number}"] = outcome
                if _is_fault(outcome) or len(numbers) == 1:
                    print(f"{kind}:{number}: {outcome}", flush=True)
            of_kind = [text for name, text in found.items() if name.startswith(f"{kind}:")]
            counts = collections.Counter(text.split()[0] for text in of_kind)
            print(kind, ", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return 1 if faults(found) else 0


if __name__ == "__main__":
    sys.exit(main())
