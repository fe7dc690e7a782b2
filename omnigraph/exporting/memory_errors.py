"""An export that runs out of memory says so as an error of this package."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from omnigraph.errors import ResourceError

_P = ParamSpec("_P")
_R = TypeVar("_R")


def memory_errors(export_: Callable[_P, _R]) -> Callable[_P, _R]:
    """Say what an export lacks where the system gives it no more memory."""

    @functools.wraps(export_)
    def named(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return export_(*args, **kwargs)
        except MemoryError as error:
            raise ResourceError(
                "The export needs more memory than there is",
                found=str(error) or None,
                hint="give its dimensions smaller ranges with --dynamic, or use a larger machine",
            ) from error

    return named
