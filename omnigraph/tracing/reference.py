"""References: what a program's torch module computes, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from omnigraph.contract.reference import Reference
from omnigraph.errors import TraceError
from omnigraph.program import Case, Program
from omnigraph.tracing.limits import size_error
from omnigraph.tracing.module_call import array, run


def reference_for(program: Program, case: Case) -> Reference:
    """A case's inputs, and the outputs of the torch module itself, in fp32.

    Raises:
        TraceError: the module does not run at these sizes; the message names the dimensions.
    """
    inputs = program.make_inputs(case)
    feeds = {name: array(tensor).copy() for name, tensor in inputs.items()}
    try:
        outputs = run(program, inputs)
    except TraceError:
        raise
    except Exception as error:
        raise size_error(program, case, error) from error
    named = dict(zip(program.outputs, outputs, strict=True))
    for name, tensor in named.items():
        if tensor.dtype == torch.bfloat16:
            raise TraceError(
                f"Output {name!r} of program {program.name!r} is not computed in fp32",
                expected="float32, or another type that numpy has",
                found="bfloat16",
                hint="switch autocast off in the model, or return tensor.float()",
            )
    return Reference(case, feeds, {name: array(t).copy() for name, t in named.items()})


def reference_on(
    program: Program, feeds: Mapping[str, np.ndarray], case: Case | None = None
) -> Reference:
    """The outputs of the torch module for inputs that are given; see `reference_for`."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    given = replace(program, make_inputs=lambda _: tensors)
    return reference_for(given, case or Case("given", {}))
