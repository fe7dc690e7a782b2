"""What positions cost in a call, before and after folding: ``python -m benchmarks.position_bias``.

One layer of the seed's width (16 heads) for each way to know positions, and a T5 encoder of
transformers. Counted is what depends on positions and the attention mask alone, which all layers
share: the numbers computed, the bytes read and written by nodes that are no views, and, measured,
the milliseconds of that part alone in onnxruntime.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.timing import print_table, save, take_turns
from omnigraph.graph import Graph, declare_ranges
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.fold_position_bias import FoldPositionBias
from omnigraph.passes.pipelines import canonical
from omnigraph.program import Program

LENGTHS = (128, 512, 2048)
#: Nodes that compute no numbers and copy none.
_VIEWS = {"Constant", "Shape", "Reshape", "Unsqueeze", "Squeeze", "Identity"}
#: Nodes that copy numbers and compute none.
_COPIES = {"Expand", "Slice", "Concat", "Transpose", "Gather", "GatherND", "Tile"}


@dataclass(frozen=True)
class Cost:
    """What one call computes and moves for positions."""

    operations: int
    bytes: int


@dataclass(frozen=True)
class Subject:
    """A program, which sizes its dimensions are declared to have, and how it is folded."""

    name: str
    program: Callable[[], Program]
    pass_: FoldPositionBias = field(default_factory=FoldPositionBias)
    ranges: Mapping[str, tuple[int, int]] | None = None


def omninet(program: str, **settings: Any) -> Callable[[], Program]:
    """A program of an OmniNet of one layer and the seed's width."""

    def make() -> Program:
        from omnigraph.models import OmniNet, OmniNetConfig
        from omnigraph.models.programs import programs

        config = OmniNetConfig.named("seed", num_layers=1, vocab_size=256, **settings)
        return next(p for p in programs(OmniNet(config).eval()) if p.name == program)

    return make


def t5() -> Program:
    """The encoder of a T5 of one layer."""
    import torch
    from transformers import T5Config, T5EncoderModel

    from omnigraph.frontends.module import program_from_module

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = T5Config(vocab_size=256, d_model=256, d_ff=256, num_layers=1, num_heads=16)
            self.model = T5EncoderModel._from_config(config, attn_implementation="sdpa")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]

    tokens = torch.ones(2, 9, dtype=torch.int64)
    inputs = {"input_ids": tokens, "attention_mask": tokens.clone()}
    return program_from_module(Encoder().eval(), inputs)


SHORT = {"sequence": (1, 128)}
LONG = {"sequence": (1, 2048), "past": (0, 2048)}
SUBJECTS = (
    Subject(
        "ALiBi, causal, up to 128",
        omninet("forward", positions="alibi", kind="decoder"),
        ranges=SHORT,
    ),
    Subject("ALiBi, causal", omninet("forward", positions="alibi", kind="decoder")),
    Subject("ALiBi, symmetric", omninet("forward", positions="alibi", kind="encoder")),
    Subject(
        "ALiBi, symmetric, as a row",
        omninet("forward", positions="alibi", kind="encoder"),
        FoldPositionBias(rows_of_products=True),
    ),
    Subject("relative", omninet("forward", kind="encoder", positions="relative")),
    Subject("relative, after a past", omninet("decode", kind="decoder", positions="relative")),
    Subject("relative, T5 of transformers", t5),
    Subject(
        "rotary, up to 2048 after 2048",
        omninet("decode", kind="decoder", positions="rotary"),
        ranges=LONG,
    ),
    Subject(
        "absolute",
        omninet("forward", kind="encoder", positions="absolute", max_positions=2048),
    ),
)


def positional(graph: Graph) -> Graph:
    """The part of a Graph that depends on sizes, constants and the attention mask alone."""
    graph = graph.clone()
    known = {v for v in graph.graph.inputs if (v.name or "").endswith("attention_mask")}
    for node in graph.graph:
        sizes = node.op_type == "Shape"
        given = [v for v in node.inputs if v is not None and not v.is_initializer()]
        weights = any(v is not None and _is_weight(v) for v in node.inputs) and not given
        if sizes or (not weights and all(value in known for value in given)):
            known.update(node.outputs)
    ends = []
    for value in known:
        readers = [node for node, _ in value.uses() if not known.issuperset(node.outputs)]
        if readers and value.producer() is not None and value.shape != ir.Shape([]):
            ends.append(value)
    graph.graph.outputs.clear()
    graph.graph.outputs.extend(ends)
    run_passes(graph, (EliminateDeadCode(),))
    return graph


def _is_weight(value: ir.Value) -> bool:
    return (
        value.is_initializer() and value.const_value is not None and value.const_value.size > 4096
    )


def feeds_of(graph: Graph, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Ones for each input, at these sizes."""
    from omnigraph.program import evaluate_dim

    made = {}
    for value in graph.graph.inputs:
        assert value.name is not None and value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else evaluate_dim(d.value, sizes) for d in value.shape]
        made[value.name] = np.ones(shape, value.dtype.numpy())
    return made


def cost(graph: Graph, sizes: Mapping[str, int]) -> Cost:
    """Count with the sizes that every value really has, as onnxruntime finds them."""
    probe = graph.clone()
    nodes = [node for node in probe.graph if node.op_type not in _VIEWS]
    values = {v for node in nodes for v in (*node.inputs, *node.outputs) if v is not None}
    shapes = {}
    for value in values:
        asked = ir.node("Shape", [value])
        asked.outputs[0].name = f"{value.name}_shape"
        probe.graph.append(asked)
        shapes[value] = asked.outputs[0]
    probe.graph.outputs.clear()
    probe.graph.outputs.extend(shapes.values())
    for output in probe.graph.outputs:
        output.type, output.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
    found = session(probe)(feeds_of(probe, sizes))
    elements = {
        value: math.prod(int(n) for n in found[shape.name or ""]) for value, shape in shapes.items()
    }
    operations = moved = 0
    for node in nodes:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                # A look-up reads what it gives, not all of its table.
                table = node.op_type in ("Gather", "GatherND", "Slice") and value is node.inputs[0]
                count = elements[node.outputs[0] if table else value]
                moved += count * (value.dtype.itemsize if value.dtype is not None else 4)
        if node.op_type not in _COPIES:
            operations += sum(elements[value] for value in node.outputs)
    return Cost(operations, int(moved))


def session(graph: Graph) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """A Graph in onnxruntime, with all its threads and optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    proto = ir.to_proto(graph)
    running = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in running.get_outputs()]
    return lambda feeds: dict(zip(names, running.run(names, dict(feeds)), strict=True))


def compare(subject: Subject, lengths: tuple[int, ...], seconds: float) -> list[dict[str, Any]]:
    """The costs of one subject before and after, at each length that its ranges allow."""
    from omnigraph.tracing.trace import trace

    before = trace(subject.program())
    run_passes(before, canonical())
    after = before.clone()
    if subject.ranges is not None:
        declare_ranges(after, subject.ranges)
    (record,) = run_passes(after, (subject.pass_,))
    outcome = [f.became or f"left: {f.reason}" for f in record.findings]
    run_passes(after, canonical())
    parts = {"before": positional(before), "after": positional(after)}
    runs = {name: session(part) for name, part in parts.items()}
    rows = []
    for length in lengths:
        if subject.ranges is not None and length > subject.ranges["sequence"][1]:
            continue
        sizes = {"batch": 1, "sequence": length, "past": length}
        costs = {name: cost(part, sizes) for name, part in parts.items()}
        fed = {name: feeds_of(part, sizes) for name, part in parts.items()}
        calls = {name: partial(run, fed[name]) for name, run in runs.items()}
        times = take_turns(calls, seconds=seconds)
        rows.append(
            {
                "positions": subject.name,
                "length": length,
                "became": outcome,
                **{f"operations_{name}": found.operations for name, found in costs.items()},
                **{f"bytes_{name}": found.bytes for name, found in costs.items()},
                **{f"ms_{name}": times[name] * 1e3 for name in times},
            }
        )
    return rows


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--dry", action="store_true", help="write no file")
    chosen = parser.parse_args()
    lengths = tuple(int(length) for length in chosen.lengths.split(","))
    rows = [row for s in SUBJECTS for row in compare(s, lengths, chosen.seconds)]
    if not chosen.dry:
        save("position_bias", {"rows": rows})
    print_table(
        ["positions", "T", "operations", "after", "MB moved", "after", "ms", "after", "became"],
        [
            [
                row["positions"],
                row["length"],
                f"{row['operations_before']:,}",
                f"{row['operations_after']:,}",
                f"{row['bytes_before'] / 1e6:.2f}",
                f"{row['bytes_after'] / 1e6:.2f}",
                f"{row['ms_before']:.2f}",
                f"{row['ms_after']:.2f}",
                "; ".join(dict.fromkeys(row["became"])),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
