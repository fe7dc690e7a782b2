"""How many heads the variants of an export keep. Imports no compiler."""

from __future__ import annotations

import re

from omnigraph.errors import UsageError


def parse_variants(text: str | None, importance: str | None = None) -> tuple[int, ...]:
    """The numbers of heads in ``heads=16,12,8``, the most first; none of None.

    Raises:
        UsageError: it is not of that form, or there is an importance of heads and no variant.
    """
    if text is None:
        if importance is not None:
            raise UsageError(
                "The importance of heads is given, and no variant that would lose any",
                hint="--variants heads=12,8 adds variants; without them, leave --importance out",
            )
        return ()
    match = re.fullmatch(r"heads=(\d+(?:,\d+)*)", text.replace(" ", ""))
    numbers = sorted({int(n) for n in match[1].split(",")}, reverse=True) if match else []
    if not numbers or numbers[-1] < 1:
        raise UsageError(
            f"{text!r} is no set of variants",
            expected="heads=N,N,… with numbers of heads of at least 1",
            hint="--variants heads=12,8 adds variants with 12 and with 8 heads an attention",
        )
    return tuple(numbers)
