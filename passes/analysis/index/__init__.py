"""An element of a tensor as an expression of its index: read it, ask it, compute it.

- Read: `read` and `IndexReader` follow a value of a Graph back and give an `Expression` of
  coordinates, lengths and data. `NotClosed` is raised where that is not possible.
- Ask: `bounds` gives the least and the greatest number of an expression; `settled` tells whether a
  coordinate changes it; `coordinates`, `lengths` and `data` list what it depends on.
- Change: `apply`, `every`, `deny` and `substitute` give expressions in normal form, in which equal
  things are equal.
- Compute: `compute` gives arrays, and an `Emitter` makes nodes.

Passes import these names from here. The modules of this folder import each other directly.
"""

from omnigraph.passes.analysis.index.bounds import Bounds, bounds, settled
from omnigraph.passes.analysis.index.dimensions import NotClosed
from omnigraph.passes.analysis.index.evaluation import Emitter, compute
from omnigraph.passes.analysis.index.expression import (
    FALSE,
    TRUE,
    All,
    Any,
    Apply,
    Choice,
    Coordinate,
    Element,
    Expression,
    IsZero,
    Length,
    Linear,
    NonNegative,
    Number,
    coordinate,
    coordinates,
    data,
    inside,
    lengths,
)
from omnigraph.passes.analysis.index.reading import IndexReader, read
from omnigraph.passes.analysis.index.shapes import dimension
from omnigraph.passes.analysis.index.simplification import apply, deny, every, substitute

__all__ = [
    "FALSE",
    "TRUE",
    "All",
    "Any",
    "Apply",
    "Bounds",
    "Choice",
    "Coordinate",
    "Element",
    "Emitter",
    "Expression",
    "IndexReader",
    "IsZero",
    "Length",
    "Linear",
    "NonNegative",
    "NotClosed",
    "Number",
    "apply",
    "bounds",
    "compute",
    "coordinate",
    "coordinates",
    "data",
    "deny",
    "dimension",
    "every",
    "inside",
    "lengths",
    "read",
    "settled",
    "substitute",
]
