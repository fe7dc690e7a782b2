"""A program to a Graph, and the check that the Graph computes what torch computes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from omnigraph.contract.graph_check import GraphRunner
from omnigraph.contract.reference import Reference
from omnigraph.errors import TraceError
from omnigraph.graph import Graph, declare_ranges, declare_roles, describe
from omnigraph.program import Program
from omnigraph.tracing.conditions import boundary_cases, conditions_of
from omnigraph.tracing.limits import limited_by_module, within_reach
from omnigraph.tracing.module_call import flatten_outputs, module_outputs, returned
from omnigraph.tracing.names import output_specs
from omnigraph.tracing.parted import fault_of, parted_error, scales_of
from omnigraph.tracing.reference import reference_for
from omnigraph.tracing.sizes import example_case
from omnigraph.tracing.specialization import NarrowedError
from omnigraph.tracing.torch_export import graph_of_module

__all__ = [
    "check_trace",
    "flatten_outputs",
    "output_specs",
    "reference_for",
    "returned",
    "trace",
    "trace_within_limits",
]

#: How the names of ops begin whose outputs are drawn.
_DRAWN = ("Random", "Bernoulli", "Multinomial")


def trace(program: Program) -> Graph:
    """Trace a program to a Graph with every declared dimension still symbolic.

    Args:
        program: what to trace; its module is not changed, and its weights are not copied.

    Returns:
        The Graph, its inputs and outputs with the program's names and roles, its dimensions by
        name, and each node with the module and the source line it came from.

    Raises:
        TraceError: torch cannot trace the module, or the trace fixed a dimension that was declared
            dynamic; the message names the dimension and the module.
    """
    to_graph = program.to_graph or graph_of_module
    graph = to_graph(program)
    _check_drawn(graph, program)
    _declare_ranges(graph, program)
    declare_roles(graph, program.roles())
    return graph


def _declare_ranges(graph: Graph, program: Program) -> None:
    declare_ranges(graph, {dim: (sizes.min, sizes.max) for dim, sizes in program.dims.items()})


def trace_within_limits(program: Program) -> tuple[Program, Graph]:
    """Trace a program; a range that nobody declared ends where torch finds that the module does.

    It also ends before sizes at which the trace may be wrong, and that are too large to compare.

    Returns:
        The program with these ranges, and its Graph.

    Raises:
        TraceError: as `trace` does.
    """
    while True:
        try:
            graph = trace(program)
        except NarrowedError as error:
            narrower = limited_by_module(program, *error.limit) if error.limit else None
            if narrower is None:
                raise
            program = narrower
        else:
            program = within_reach(program, conditions_of(graph))
            _declare_ranges(graph, program)
            return program, graph


def check_trace(program: Program, graph: Graph, references: Sequence[Reference]) -> None:
    """Run the traced Graph at other sizes than it was traced at, and compare it with torch.

    Beside the given sizes it runs at those where a comparison of sizes that torch saw in the trace
    turns out the other way.

    Raises:
        TraceError: a size or a number is not that of the module: the trace fixed something that
            depends on a dimension; the message names the dimension and the module.
    """
    runner = GraphRunner(graph)
    scales = scales_of(graph, references)
    tried = [reference.case for reference in references]
    beyond = boundary_cases(program, conditions_of(graph), tried)
    for sample in (*references, *(reference_for(program, case) for case in beyond)):
        if (fault := fault_of(runner, sample, scales)) is not None:
            raise parted_error(
                program,
                runner,
                sample,
                fault,
                traced=example_case(program),
                reference=partial(reference_for, program),
                recorded=module_outputs(program, sample.case),
            )


def _check_drawn(graph: Graph, program: Program) -> None:
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        if node.op_type.startswith(_DRAWN) or _drops(node):
            raise TraceError(
                f"Program {program.name!r} draws random numbers, at {describe(node)}",
                expected="outputs that depend on the inputs alone",
                found=node.op_type,
                hint="call model.eval(), which stops dropout; or take the noise as an input",
            )


def _drops(node: ir.Node) -> bool:
    """Whether a node is a Dropout that is in training mode."""
    if node.op_type != "Dropout" or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    training = ir.convenience.get_const_tensor(node.inputs[2])
    return training is None or bool(training.numpy())
