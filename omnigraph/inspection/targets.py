"""The targets that are installed, and whether each compiles and runs on this machine.

What runs here is known without the compiler, from the runtimes alone.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any


def list_targets() -> list[dict[str, Any]]:
    """The installed targets: what each is, and whether it compiles and runs here.

    Where the compiler is not installed, the precisions and options of a target are not known.
    """
    return [_described(entry) for entry in sorted(entry_points(group="omnigraph.targets"))]


def _described(entry: Any) -> dict[str, Any]:
    try:
        target = entry.load()
    except ImportError as error:
        return _runtime_alone(entry.name, error)
    return {
        "name": entry.name,
        "purpose": target.purpose,
        "precisions": list(target.offered),
        "options": dict(target.options),
        "unusable": target.unusable(),
        "unrunnable": target.unrunnable(),
    }


def _runtime_alone(name: str, error: ImportError) -> dict[str, Any]:
    from omnigraph.errors import DeviceError
    from omnigraph.runtimes import session_class

    missing = f"{error.name} is not installed" if error.name else str(error)
    found: dict[str, Any] = {
        "name": name,
        "purpose": "",
        "precisions": [],
        "options": {},
        "unusable": f"{missing}: pip install 'omnigraph[export]'",
    }
    try:
        session = session_class(name)
    except (DeviceError, ImportError) as failed:
        return {**found, "unrunnable": str(failed).splitlines()[0]}
    return {**found, "purpose": session.purpose, "unrunnable": session.unrunnable()}
