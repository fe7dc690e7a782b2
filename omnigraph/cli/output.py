"""What commands print: data to stdout, all else to stderr."""

from __future__ import annotations

import json
from typing import Any


def print_json(fields: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(fields, indent=1, ensure_ascii=False))
