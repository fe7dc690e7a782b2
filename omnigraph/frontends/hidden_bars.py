"""Hides the progress bars of transformers, which would cross our own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

_LOGGING = "transformers.utils.logging"


@contextmanager
def hidden_bars(factory: ModuleType | None = None) -> Iterator[None]:
    """Switch the bars off while a model is made, and back on after it.

    Args:
        factory: the module of its factory: where its text names transformers, that is imported.
    """
    with suppress(ImportError, OSError, UnicodeDecodeError):
        file = getattr(factory, "__file__", None)
        if file is not None and "transformers" in Path(file).read_text(encoding="utf-8"):
            importlib.import_module(_LOGGING)
    logging = sys.modules.get(_LOGGING)
    if logging is None or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
