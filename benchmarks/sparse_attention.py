"""Sliding windows by blocks against the dense form: ``python -m benchmarks.sparse_attention``.

The attention of a traced OmniNet (16 heads of 64, batch 1, window 256), cut out of its Graph with
all that makes its mask, as it is and after `LowerSparseAttention`, in onnxruntime and OpenVINO.
Each contestant has a process of its own for its memory: the most that was resident, less what was
before the first call at that length, less the output. For time, both forms take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.timing import in_new_process, print_table, save, take_turns
from omnigraph.graph import Graph
from omnigraph.models import AttentionPattern, OmniNet, OmniNetConfig
from omnigraph.models.programs import programs
from omnigraph.passes.base import run_passes
from omnigraph.passes.eliminate_dead_code import EliminateDeadCode
from omnigraph.passes.lower_sparse_attention import LowerSparseAttention
from omnigraph.passes.pipelines import canonical
from omnigraph.tracing.trace import trace

LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
#: The dense form is not run at more: its scores alone are 4 GB at 8192.
LONGEST_DENSE = 4096
WINDOW, HEADS, HEAD_SIZE = 256, 16, 64
CASES = {
    "causal, ALiBi": ("decoder", "alibi"),
    "causal, no bias": ("decoder", "rotary"),
    "symmetric, ALiBi": ("encoder", "alibi"),
    "symmetric, no bias": ("encoder", "rotary"),
}
RUNTIMES = ("onnxruntime", "openvino")

#: Runs one graph in one runtime; ``run(length)`` gives its output.
_CALL = """
import sys
import numpy as np

def session(path, runtime, threads=2):
    if runtime == "onnxruntime":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda feeds: made.run(None, feeds)[0]
    import openvino
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    made = openvino.Core().compile_model(path, "CPU", hints)
    return lambda feeds: made(feeds)[0]

def feeds_of(length):
    rng = np.random.default_rng(length)
    made = {n: rng.standard_normal((1, 16, length, 64), np.float32) for n in "qkv"}
    return {**made, "attention_mask": np.ones((1, length), np.int64)}
"""
_MEMORY = f"""{_CALL}
def resident(field):
    return int(open("/proc/self/status").read().split(field)[1].split()[0]) * 1024

path, runtime, length = sys.argv[1], sys.argv[2], int(sys.argv[3])
call, feeds = session(path, runtime), feeds_of(length)
call(feeds_of(8))
before = resident("VmRSS:")
out = call(feeds)
result = {{"bytes": resident("VmHWM:") - before - out.nbytes}}
"""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--block", type=int, default=LowerSparseAttention.block)
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in given.cases:
            figures[case] = {}
            for runtime in RUNTIMES:
                # As the targets lower it: OpenVINO is given products.
                pass_ = LowerSparseAttention(given.block, products=runtime == "openvino")
                paths = graphs(Path(scratch), *CASES[case], pass_)
                figures[case][runtime] = {
                    str(n): measure(paths, runtime, n, given.seconds) for n in given.lengths
                }
            report(case, figures[case])
    if tuple(given.lengths) == LENGTHS and list(given.cases) == list(CASES):
        save("sparse_attention", {"window": WINDOW, "heads": HEADS, "cases": figures})


def graphs(
    scratch: Path, kind: str, positions: str, pass_: LowerSparseAttention
) -> dict[str, Path]:
    """The dense form and the lowered one, as files."""
    dense = attention_alone(kind, positions)
    lowered = dense.clone()
    (record,) = run_passes(lowered, (pass_,))
    assert record.modified, record.findings
    paths = {}
    for name, graph in (("dense", dense), ("blocks", lowered)):
        run_passes(graph, canonical())
        paths[name] = scratch / f"{kind}-{positions}-{name}.onnx"
        ir.save(graph, paths[name])
    return paths


def attention_alone(kind: str, positions: str) -> Graph:
    """The attention of a traced model with the making of its mask: q, k, v, attention_mask -> y."""
    config = OmniNetConfig.named(
        "tiny",
        kind=kind,
        positions=positions,
        num_layers=1,
        hidden_size=HEADS * HEAD_SIZE,
        num_heads=HEADS,
        attention=AttentionPattern("sliding_window", window=WINDOW),
    )
    program = next(p for p in programs(OmniNet(config).eval()) if p.name == "forward")
    graph = trace(program)
    run_passes(graph, canonical())
    (node,) = (node for node in graph.graph if node.op_type == "Attention")
    for index, name in enumerate("qkv"):
        old = node.inputs[index]
        assert old is not None
        node.replace_input_with(index, ir.val(name, shape=old.shape, type=old.type))
        graph.graph.inputs.append(node.inputs[index])
    node.outputs[0].name = "y"
    graph.graph.outputs[:] = [node.outputs[0]]
    run_passes(graph, (EliminateDeadCode(),))
    graph.graph.inputs[:] = [value for value in graph.graph.inputs if value.name != "input_ids"]
    return graph


def measure(paths: dict[str, Path], runtime: str, length: int, seconds: float) -> dict[str, Any]:
    """Milliseconds, bytes and the error of each form that is run at this length."""
    forms = [form for form in paths if form != "dense" or length <= LONGEST_DENSE]
    scope: dict[str, Any] = {}
    exec(_CALL, scope)  # the same calls as in the processes that memory is measured in
    feeds = scope["feeds_of"](length)
    calls = {form: scope["session"](str(paths[form]), runtime) for form in forms}
    results = {form: np.array(calls[form](feeds)) for form in forms}
    times = take_turns(
        {form: lambda call=call: call(feeds) for form, call in calls.items()},
        seconds=seconds,
        warmup=1,
    )
    calls.clear()
    figures: dict[str, Any] = {}
    for form in forms:
        used = in_new_process(_MEMORY, str(paths[form]), runtime, str(length))
        figures[form] = {"ms": times[form] * 1e3, "bytes": used["bytes"]}
    if "dense" in forms:
        error = results["blocks"] - results["dense"]
        scale = np.sqrt(np.mean(np.square(results["dense"])))
        figures["blocks"]["rms"] = float(np.sqrt(np.mean(np.square(error))) / scale)
    return figures


def report(case: str, figures: dict[str, Any]) -> None:
    """One table for a kind of attention."""
    rows = []
    for runtime, lengths in figures.items():
        for length, forms in lengths.items():
            blocks, dense = forms["blocks"], forms.get("dense")
            row = [runtime, length, f"{blocks['ms']:.0f}", f"{blocks['bytes'] / 1e6:.0f}"]
            if dense is None:
                rows.append([*row, "", "", "", "", ""])
                continue
            faster, less = dense["ms"] / blocks["ms"], dense["bytes"] / blocks["bytes"]
            row += [f"{dense['ms']:.0f}", f"{dense['bytes'] / 1e6:.0f}"]
            rows.append([*row, f"{faster:.1f}", f"{less:.1f}", f"{blocks['rms']:.0e}"])
    print(f"\nwindow {WINDOW}, {case}\n")
    print_table(
        (
            "runtime",
            "T",
            "blocks (ms)",
            "blocks (MB)",
            "dense (ms)",
            "dense (MB)",
            "times faster",
            "times less memory",
            "difference (rms)",
        ),
        rows,
    )


if __name__ == "__main__":
    main()
