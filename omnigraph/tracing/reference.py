"""References: what a program's torch module computes, in fp32."""

from __future__ import annotations

from functools import partial

import torch

from omnigraph.contract.reference import Reference
from omnigraph.errors import TraceError
from omnigraph.program import Case, Program, fit_sizes
from omnigraph.tracing.module_call import array, first_line, place_of, run
from omnigraph.tracing.specialization import guilty_dimensions

#: Sizes a program is traced at: different, coprime, and none of them 0 or 1, which torch.export
#: would make constants (its "0/1 specialization").
_TRACE_SIZES = (2, 7, 5, 3, 11, 13, 17, 19)


def example_case(program: Program) -> Case:
    """The sizes a program is traced at: all different where the ranges allow, and none below 2."""
    sizes = fit_sizes(program, dict(zip(program.dim_names(), _TRACE_SIZES, strict=False)))
    for dim in program.dim_names():
        sizes[dim] = max(sizes[dim], 2)
    return Case("trace", sizes)


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
        guilty = guilty_dimensions(example_case(program), case, partial(_fails, program))
        dims = ", ".join(f"{dim}={case.sizes[dim]}" for dim in guilty or case.sizes)
        raise TraceError(
            f"The module of program {program.name!r} does not run at {dims}, which its dimensions "
            f"allow{place_of(error)}",
            expected="a run at " + ", ".join(f"{d}={r}" for d, r in program.dims.items()),
            found=first_line(error),
            hint="declare the sizes that the module takes, with --dynamic DIM=MIN:MAX",
        ) from error
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


def _fails(program: Program, case: Case) -> bool:
    try:
        run(program, program.make_inputs(case))
    except Exception:
        return True
    return False
