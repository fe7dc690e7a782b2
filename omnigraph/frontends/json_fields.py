"""The fields of a JSON file beside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omnigraph.errors import UsageError


def read_json(path: Path) -> Any:
    """What a JSON file holds; an empty mapping where there is none.

    Raises:
        UsageError: the file is no JSON.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(
            f"{path} cannot be read",
            expected="JSON, as save_pretrained writes it",
            found=str(error).splitlines()[0],
            hint="write the folder again, or remove the file if the model does not need it",
        ) from error
