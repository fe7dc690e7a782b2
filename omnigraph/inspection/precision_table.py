"""The precision ledger as a table. It imports no compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omnigraph.report import table


def precision_text(rows: Sequence[dict[str, Any]]) -> str:
    """The ledger of one program as a table, with layers of one kind in one row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        weights = row["weights"] + (f", blocks of {row['block']}" if "block" in row else "")
        key = (row["op"], weights, row["activations"], f"{row['bits']:.2f}")
        groups.setdefault(key, []).append(row["layer"])
    return table(
        ("precision of", "layers", "op", "weights", "activations", "bits on disk"),
        [
            (f"{layers[0]} … {layers[-1]}" if layers[1:] else layers[0], str(len(layers)), *key)
            for key, layers in groups.items()
        ],
    )
