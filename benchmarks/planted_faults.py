"""Faults planted in exports: found by the contract, named by bisect, or smaller than the noise.

``python -m benchmarks.planted_faults`` plants every fault once in each precision of each target, at
times and in models that change from precision to precision, and makes 200 varied exports without a
fault. ``--write`` puts the tables into ``docs/contract.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.timing import RESULTS, save

_PAGE = Path(__file__).parent.parent / "docs" / "contract.md"
_BEGIN, _END = "<!-- planted faults: begin -->", "<!-- planted faults: end -->"
_PROCESSES = 2
Row = dict[str, Any]


def planted_in(export: tuple[int, str, str], every: int) -> list[Row]:
    """What came of the faults of one export.

    Args:
        export: its turn, its target and its precision.
        every: plants each so many-th fault.
    """
    from benchmarks.faults.catalogue import planned
    from benchmarks.faults.planting import try_fault
    from benchmarks.faults.size import size_of

    turn, target, precision = export
    rows = []
    for number, (fault, time, model) in enumerate(planned(target, precision, turn)):
        if (number + turn) % every:
            continue
        try:
            outcome = try_fault(fault, time, model, target, precision)
        except Exception:  # of the planting, not of the export: the others are worth an hour
            print(
                f"NOT PLANTED: {fault.name}, {time}, {model}\n{traceback.format_exc()}", flush=True
            )
            continue
        if outcome is None:
            continue
        found = outcome.error is not None
        rows.append(
            {
                "fault": fault.name,
                "time": time,
                "model": model,
                "target": target,
                "precision": precision,
                "place": outcome.planted.place.name if outcome.planted.place else "",
                "found": found,
                "named": outcome.named,
                "error": outcome.error,
                "bisect": [str(parting) for parting in outcome.partings],
                "size": None if found else asdict(size_of(outcome)),
            }
        )
    return rows


def varied(seed: int) -> Row:
    """What came of one export without a fault."""
    from benchmarks.faults.varied import drawn, try_varied

    export = drawn(seed)
    return {"export": str(export), "error": try_varied(export)}


def _gather(work: Callable[[Any], Any], items: Sequence[Any], said: str) -> list[Any]:
    """Results in the order of the items, computed by some processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    found = []
    with multiprocessing.get_context("spawn").Pool(_PROCESSES, maxtasksperchild=8) as pool:
        for item, result in zip(items, pool.imap(work, items), strict=True):
            print(f"{said}: {item}", flush=True)
            found.append(result)
    return found


# Tables -------------------------------------------------------------------------------------------


def tables(rows: Sequence[Row], alarms: Sequence[Row]) -> str:
    """The tables of the page, in Markdown."""
    parts = [
        _table(
            ("target, precision", "planted", "found", "named by bisect", "not found"),
            [
                (name, len(some), _count(some, "found"), _count(some, "named"), _missed(some))
                for name, some in _by(rows, lambda row: f"{row['target']} {row['precision']}")
            ],
        ),
        _table(
            ("planted", "faults", "found", "named by bisect", "not found"),
            [
                (
                    _WHEN[time],
                    len(some),
                    _count(some, "found"),
                    _count(some, "named"),
                    _missed(some),
                )
                for time, some in _by(rows, lambda row: row["time"])
            ],
        ),
    ]
    unseen = [row for row in rows if not row["found"]]
    parts.append(
        "Those not found, with their size (root mean square, relative) beside the noise of the "
        "precision, at the outputs and at the node itself:"
    )
    parts.append(
        _table(
            ("fault", "in", "outputs", "their noise", "node", "its noise"),
            [
                (
                    row["fault"],
                    f"{row['target']} {row['precision']}, {row['model']}, {row['time']}",
                    *(f"{row['size'][k]:.1e}" for k in ("outputs", "noise", "site", "site_noise")),
                )
                for row in sorted(unseen, key=lambda row: str(row["fault"]))
            ],
        )
    )
    wrong = [row for row in alarms if row["error"]]
    parts.append(f"Of {len(alarms)} varied exports without a fault, {len(wrong)} were refused.")
    return "\n\n".join(parts)


_WHEN = {
    "trace": "in the trace",
    "passes": "after the passes that fuse",
    "rounding": "in the pass that rounds",
    "lowering": "after the target's last pass",
    "artifact": "in the artifact alone",
}


def _by(rows: Iterable[Row], key: Callable[[Row], str]) -> list[tuple[str, list[Row]]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())


def _count(rows: Sequence[Row], field: str) -> int:
    return sum(bool(row[field]) for row in rows)


def _missed(rows: Sequence[Row]) -> int:
    return len(rows) - _count(rows, "found")


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def write_page(text: str, page: Path = _PAGE) -> None:
    """Put the tables between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(_BEGIN)
    _, _, after = rest.partition(_END)
    page.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] = ()) -> None:
    """Plant the faults, make the varied exports, print the tables and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="plant each so many-th fault alone")
    parser.add_argument("--only", default="", help="such as onnx:int8,openvino:bf16")
    parser.add_argument("--exports", type=int, default=200, help="varied exports without a fault")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/contract.md")
    asked = parser.parse_args(arguments)
    from benchmarks.faults.catalogue import exports

    chosen = [
        (turn, target, precision)
        for turn, (target, precision) in enumerate(exports())
        if not asked.only or f"{target}:{precision}" in asked.only.split(",")
    ]
    made = _gather(partial(planted_in, every=asked.every), chosen, "planted in")
    alarms = _gather(varied, range(asked.exports), "exported")
    rows = [row for some in made for row in some]
    for row in alarms:
        if row["error"]:
            print(f"REFUSED {row['export']}\n  {row['error']}")
    text = tables(rows, alarms)
    print(text)
    save("planted_faults", {"faults": rows, "exports": alarms})
    print(f"saved to {RESULTS / 'planted_faults.json'}: {len(json.dumps(rows)):,} bytes")
    if asked.write:
        write_page(text)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
