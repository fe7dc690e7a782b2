"""The lower end of a proportion, which holds for 95 of 100 sets of tries."""

from __future__ import annotations

import math

#: The normal deviation that 95 of 100 results are below (Abramowitz & Stegun, table 26.5).
_NORMAL = 1.6448536269514722


def lower_proportion(hits: int, tries: int) -> float:
    """The lower end of a proportion, as if all tries were independent.

    This is Wilson's interval (Wilson, Probable Inference, JASA 1927), which holds near 0 and 1 and
    for few tries too (Brown, Cai & DasGupta, Interval Estimation for a Binomial Proportion,
    Statistical Science 2001, section 3.1.1). All hits of 10 tries give 0.79, not 1.
    """
    if not tries:
        return 0.0
    found, square = hits / tries, _NORMAL**2
    spread = _NORMAL * math.sqrt(found * (1 - found) / tries + square / (4 * tries**2))
    return max(0.0, (found + square / (2 * tries) - spread) / (1 + square / tries))
