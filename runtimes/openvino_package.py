"""Imports OpenVINO's package, for its runtime and for its target."""

from __future__ import annotations

import sys
from typing import Any


def import_openvino() -> Any:
    """The vendor's package, imported without the event that it would send to Google Analytics.

    Raises:
        ImportError: it is not installed.
    """
    try:
        if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino
    finally:
        if sys.modules.get("openvino_telemetry", sys) is None:
            del sys.modules["openvino_telemetry"]
    return openvino
