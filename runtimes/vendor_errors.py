"""What a vendor's error says, in one line of ours."""

from __future__ import annotations

import re

#: What says where in the vendor's own code an error was raised, and of which kind its class is.
_PLACES = re.compile(
    r"^Exception from \S+:\d+:|^While validating node|\[ONNXRuntimeError\] : \d+ : \w+ : (?=.)"
    r"|^Check '.*' failed at \S+:\d+:$|(?<= failed) at \S+:\d+"
    r"|\S+\.(?:h|hpp|cc|cpp|cu):\d+ (?:[\w:<>~&* ]+\([^()]*\) )?"
)
_LONGEST = 300


def message_of(error: BaseException) -> str:
    """What an error says: without the places in the vendor's code, and at most 300 characters.

    An error that says nothing is called by its type.
    """
    lines = (_PLACES.sub("", line.strip()).strip() for line in str(error).splitlines())
    text = " ".join(line for line in lines if line)[:_LONGEST].rstrip(". ")
    return text or f"{type(error).__name__}, without a message"
