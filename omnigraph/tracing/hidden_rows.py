"""The input set in which one row of a batch is hidden wholly: no token of it is shown.

A softmax over nothing is 0/0. torch's fused attention gives 0 there; a softmax of scores that are
all -inf gives NaN; scores with the lowest finite number give the mean. An artifact gives 0 where
torch gives 0 or NaN (the erratum to ONNX Attention-24 says so), also in attention weights that are
an output. So the reference is torch's module, with a softmax of nothing that gives 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omnigraph.contract.reference import HIDDEN_ROW, Reference
from omnigraph.errors import TraceError
from omnigraph.program import Case, Program, TensorSpec, dim_terms, fit_sizes
from omnigraph.tracing.reference import reference_on

#: Sizes that no other input set has.
_SIZES = {"batch": 2, "sequence": 6, "past": 4, "decoder_sequence": 7}


def hidden_row(program: Program, seed: int) -> Reference | None:
    """The reference of the input set "hidden-row"; None where the program has no such row.

    It has none without a mask of rows, where it takes one row alone, and where the module itself
    gives NaN or fails without a token, as a mean over the tokens does.
    """
    masks = [spec for spec in program.inputs if _is_mask_of_rows(spec)]
    case = Case(HIDDEN_ROW, fit_sizes(program, _SIZES), seed=seed)
    if not masks or case.sizes.get(str(masks[0].shape[0]), 1) < 2:
        return None
    feeds = {name: t.numpy().copy() for name, t in program.make_inputs(case).items()}
    for spec in masks:
        feeds[spec.name][-1] = 0
    try:
        with _SafeSoftmax():
            found = reference_on(program, feeds, case)
    except TraceError:
        return None
    if any(np.isnan(a).any() for a in found.outputs.values() if a.dtype.kind == "f"):
        return None
    return found


def _is_mask_of_rows(spec: TensorSpec) -> bool:
    batch = spec.shape[0] if spec.shape else 1
    return spec.role == "mask" and len(spec.shape) == 2 and len(dim_terms(str(batch))) == 1


class _SafeSoftmax(TorchDispatchMode):
    """A softmax of scores that are all -inf gives 0, as that of torch's fused attention does."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._softmax.default:
            scores, axis = args[0], args[1]
            hidden = torch.isneginf(scores).all(dim=axis, keepdim=True)
            return found.masked_fill(hidden, 0.0)
        return found
