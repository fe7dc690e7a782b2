"""The ``onnx`` target: ONNX files in the form that onnxruntime's CPU kernels run fastest."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import onnx
import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.contract.graph_check import proto_without_weights
from omnigraph.graph import OPSET, Graph
from omnigraph.lowering.base import Emission, Lowered, Target
from omnigraph.lowering.emulation import initializer_hashes, run_file_unrounded
from omnigraph.lowering.nonconforming import nonconforming
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.lowering.onnx.kernels import CONTRIB_OPS, LEAST_TOKENS_GROUPED, MOST_QUERIES_JOINED
from omnigraph.passes.analysis.quantization.scheme import (
    DYNAMIC,
    PER_CHANNEL,
    UNSIGNED,
    Scheme,
)
from omnigraph.passes.analysis.quantization.weight_rounding import WeightGrid
from omnigraph.passes.compress_weights import CompressWeights
from omnigraph.passes.emulate_group_quantization import EmulateGroupQuantization
from omnigraph.passes.join_attention_heads import JoinAttentionHeads
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.pipelines import common
from omnigraph.passes.separate_stored_weights import SeparateStoredWeights
from omnigraph.passes.transpose_stored_weights import TransposeStoredWeights
from omnigraph.passes.use_group_query_attention import CONTRIB_DOMAIN, UseGroupQueryAttention
from omnigraph.precision import PRECISIONS, quantizes

#: The first onnxruntime that takes each opset.
_SINCE = {23: "1.23", OPSET: "1.24"}

#: Types that no kernel of onnxruntime's CPU provider computes with; casts to and from them exist.
_NO_ARITHMETIC = (ir.DataType.BFLOAT16,)
_SCORES = 3


class OnnxTarget(Target):
    """ONNX at our opset with weights beside the graphs, for onnxruntime."""

    name = "onnx"
    purpose = "ONNX files for onnxruntime on CPUs"
    session = "omnigraph.runtimes.onnx:OnnxSession"
    schemes: ClassVar[Mapping[str, Scheme | None]] = {
        "fp32": None,
        "fp16": None,
        "int8": Scheme(PER_CHANNEL, UNSIGNED, by_token=True),
        "int8-dynamic": Scheme(PER_CHANNEL, DYNAMIC),
        # MatMulNBits multiplies integers: it quantizes activations by the groups of the weights.
        "int8-weights": Scheme(PER_CHANNEL, runtime_group=128),
        "int4-weights": Scheme(WeightGrid(ir.DataType.UINT4, 64), runtime_group=64),
    }

    def unusable(self) -> str | None:
        """Emitting needs nothing; the contract needs onnxruntime."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed: pip install 'omnigraph[onnx]'"
        return None

    def supports(self, node: ir.Node, precision: str) -> str | None:
        """Every op of the standard, in every type that has arithmetic on the CPU."""
        contrib = node.domain == CONTRIB_DOMAIN
        if contrib and node.op_type not in CONTRIB_OPS:
            return f"{node.op_type} of {node.domain} is not among the ops measured to be faster"
        if node.domain != "" and not contrib:
            return f"domain {node.domain!r} is not standard ONNX"
        if not contrib and not onnx.defs.has(node.op_type):
            return "there is no such op in the ONNX standard"
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.dtype in _NO_ARITHMETIC and node.op_type != "Cast":
                return f"onnxruntime's CPU kernels do not compute in {value.dtype.name.lower()}"
        return nonconforming(node) or _scores_of_hidden(node)

    def pipeline(self, precision: str) -> Pipeline:
        """fp16 is a storage format here: CPUs compute in fp32 faster than in emulated fp16."""
        kernels = (
            # Before heads are joined, which it does itself where it takes an Attention.
            UseGroupQueryAttention(LEAST_TOKENS_GROUPED),
            JoinAttentionHeads(MOST_QUERIES_JOINED),
            SeparateStoredWeights(),
            # After it, where each dequantized weight has one reader.
            TransposeStoredWeights(),
        )
        narrow = (CompressWeights(),) if PRECISIONS[precision].floats != "fp32" else ()
        return replace(common(), kernels=(*kernels, *narrow))

    def emit(
        self,
        programs: Sequence[Lowered],
        directory: Path,
        *,
        precision: str,
        options: Mapping[str, str],
    ) -> Emission:
        """Write the graphs, and their weights once for all."""
        opset = max(_least_opset(program.graph) for program in programs)
        for program in programs:
            program.graph.opset_imports[""] = opset
        return Emission(
            files=write_onnx(programs, directory),
            device="cpu",
            requires={"onnxruntime": f">={_SINCE[opset]}"},
        )

    def run_unrounded(self, artifact: Artifact, program: str) -> AbstractContextManager[Run]:
        """The file itself, node by node."""
        return run_file_unrounded(artifact, program, "model")

    def constant_hashes(self, artifact: Artifact, program: str, sizes: Collection[int]) -> set[str]:
        """Of the initializers of the ONNX file."""
        return initializer_hashes(artifact, program, "model", sizes)

    def emulate(self, graph: Graph, precision: str) -> None:
        """MatMulNBits quantizes the activations of layers whose weights alone are quantized."""
        if quantizes(precision):
            EmulateGroupQuantization()(graph)


def _scores_of_hidden(node: ir.Node) -> str | None:
    """Why onnxruntime gives other scores than the standard, or None."""
    if (
        node.op_type != "Attention"
        or len(node.outputs) <= _SCORES
        or not node.outputs[_SCORES].name
    ):
        return None
    causal = node.attributes.get_int("is_causal", 0)
    if causal and node.attributes.get_int("qk_matmul_output_mode", 0) in (1, 2):
        return "onnxruntime gives the scores of later keys as the lowest finite number, not as -inf"
    return None


def _least_opset(graph: Graph) -> int:
    """The earliest opset at which a Graph means the same, so that older runtimes take it.

    From 23 to 24 no op changed its meaning: some took more types, attributes or inputs, and the
    checker refuses at 23 whatever uses those (ONNX operator changelog, version 24).
    """
    proto = proto_without_weights(graph)
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = min(_SINCE)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return OPSET
    return min(_SINCE)


TARGET = OnnxTarget()
