"""OpenVINO's package, for the compiler."""

from __future__ import annotations

import sys


def vendor():  # type: ignore[no-untyped-def]
    """The vendor's package, imported without the event that it would send to Google Analytics."""
    try:
        if "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules:
            sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        import openvino
    finally:
        if sys.modules.get("openvino_telemetry", sys) is None:
            del sys.modules["openvino_telemetry"]
    return openvino
