"""The ``openvino`` target: one OpenVINO IR a program, over one file of weights."""

from __future__ import annotations

import functools
import importlib.util
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from omnigraph.artifact import Artifact
from omnigraph.contract.comparison import Run
from omnigraph.errors import CompileError
from omnigraph.graph import OPSET, Graph, describe
from omnigraph.lowering.base import Emission, Lowered, Target
from omnigraph.lowering.onnx.files import write_onnx
from omnigraph.lowering.openvino.attention import simplify_attention
from omnigraph.lowering.openvino.ir import (
    SharedWeights,
    constant_hashes,
    rewrite_ir,
    weights_as_inputs,
)
from omnigraph.lowering.openvino.quantization import SCHEMES, runtime_details
from omnigraph.lowering.openvino.support import computed_wrongly
from omnigraph.lowering.openvino.unrounded import run_unrounded
from omnigraph.lowering.openvino.wide_positions import separate_conversions
from omnigraph.passes.compress_weights import CompressWeights
from omnigraph.passes.convert_precision import ConvertPrecision
from omnigraph.passes.decompose_partial_rotary import DecomposePartialRotary
from omnigraph.passes.emulate_group_quantization import EmulateGroupQuantization
from omnigraph.passes.legalize_attention_axes import LegalizeAttentionAxes
from omnigraph.passes.legalize_attention_past import LegalizeAttentionPast
from omnigraph.passes.legalize_causal_mask import LegalizeCausalMask
from omnigraph.passes.legalize_dropped_axes import LegalizeDroppedAxes
from omnigraph.passes.legalize_extreme_reductions import LegalizeExtremeReductions
from omnigraph.passes.legalize_integer_lookups import LegalizeIntegerLookups
from omnigraph.passes.legalize_ragged_blocks import LegalizeRaggedBlocks
from omnigraph.passes.legalize_tensor_scatter import LegalizeTensorScatter
from omnigraph.passes.legalize_unmasked_attention import LegalizeUnmaskedAttention
from omnigraph.passes.pipeline import Pipeline
from omnigraph.passes.pipelines import common, tidy
from omnigraph.precision import PRECISIONS, quantizes
from omnigraph.program import Dim, DimLike, TensorSpec, dim_terms
from omnigraph.runtimes.openvino_package import import_openvino

if TYPE_CHECKING:
    import openvino

_WEIGHTS = "weights.bin"
#: OpenVINO's own group of activations that it quantizes, where the Session sets none.
_RUNTIME_GROUP = 32
#: Names that OpenVINO makes up: a type, and a counter of the process.
_COUNTED = re.compile(r"[A-Z][A-Za-z0-9]*_\d+")
#: Constant inputs up to this size are shown to the frontend with their values: axes and shapes.
_SMALL_BYTES = 1024


class OpenVinoTarget(Target):
    """OpenVINO IR, made by OpenVINO's own ONNX frontend from the lowered Graph.

    The frontend sees each weight as an input, which becomes a constant again in the IR, at the
    offset where the weight was written. So no weight has to be in memory.
    """

    name = "openvino"
    purpose = "OpenVINO IR for Intel and other x86 CPUs, and Intel GPUs and NPUs"
    session = "omnigraph.runtimes.openvino:OpenVinoSession"
    schemes = SCHEMES
    floats_around = "bf16"  # the type of its products; fp16 stores the weights alone

    def unusable(self) -> str | None:
        """Emitting needs OpenVINO's frontend."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'omnigraph[openvino]'"
        return None

    def supports(self, node: ir.Node, precision: str) -> str | None:
        """Why OpenVINO refuses a node or computes it wrongly, or None; its frontend is asked."""
        if node.domain != "":
            return f"domain {node.domain!r} is not standard ONNX"
        if (reason := computed_wrongly(node)) is not None:
            return reason
        question = _ask_about(node)
        return None if question is None else _frontend_refusal(question)

    def pipeline(self, precision: str) -> Pipeline:
        """A half type stores the weights; the runtime's hint sets the type of computation."""
        legal = (
            # The plugin fuses a rotation of a part of each head only where it is decomposed.
            DecomposePartialRotary(),
            LegalizeTensorScatter(),
            LegalizeAttentionAxes(),
            LegalizeCausalMask(),
            LegalizeAttentionPast(),
            LegalizeUnmaskedAttention(),
            LegalizeExtremeReductions(),
            LegalizeDroppedAxes(),
            LegalizeRaggedBlocks(longer=True),
        )
        narrow = (CompressWeights(),) if PRECISIONS[precision].floats != "fp32" else ()
        return replace(common(blocks_as_products=True), kernels=(*legal, *tidy(), *narrow))

    def emit(
        self,
        programs: Sequence[Lowered],
        directory: Path,
        *,
        precision: str,
        options: Mapping[str, str],
    ) -> Emission:
        """Write ``<program>.xml`` for each program, and all weights into one ``weights.bin``."""
        written = write_onnx(programs, directory, _WEIGHTS)
        weights = SharedWeights(directory / _WEIGHTS)
        files: dict[str, dict[str, str]] = {}
        for program in programs:
            source = directory / written[program.name]["model"]
            proto = onnx.load(source, load_external_data=False)
            source.unlink()
            places = weights_as_inputs(proto)
            model = _convert(program, proto)
            simplify_attention(model, program.graph)
            separate_conversions(model)
            _bound_and_name(model, program)
            out = directory / f"{program.name}.xml"
            with tempfile.TemporaryDirectory() as scratch:
                xml, binary = Path(scratch) / "model.xml", Path(scratch) / "model.bin"
                import_openvino().serialize(model, xml, binary)
                rewrite_ir(xml, binary, places, weights, out, half_matmuls=precision == "bf16")
            files[program.name] = {"model": out.name}
        if weights.path.exists():
            files = {name: {**roles, "weights": _WEIGHTS} for name, roles in files.items()}
        return Emission(
            files=files,
            device="cpu",
            requires={"openvino": ">=2026.4,<2027"},
            details={program.name: runtime_details(precision) for program in programs},
        )

    def run_unrounded(self, artifact: Artifact, program: str) -> AbstractContextManager[Run]:
        """The IR in f32, with its quantizers of activations taken out."""
        return run_unrounded(artifact, program)

    def constant_hashes(self, artifact: Artifact, program: str, sizes: Collection[int]) -> set[str]:
        """Of the constants of the IR."""
        files = artifact.programs[program].files
        if "weights" not in files:
            return set()
        return constant_hashes(
            artifact.read(files["model"]), artifact.read(files["weights"]), sizes
        )

    def emulate(self, graph: Graph, precision: str) -> None:
        """The type that the CPU's kernels compute in, and activations quantized in groups."""
        details = runtime_details(precision)
        if quantizes(precision):
            group = details.get("dynamic_quantization_group", _RUNTIME_GROUP)
            EmulateGroupQuantization(group)(graph)
        if details["execution"]["cpu"] == "bf16":
            # Before ConvertPrecision, which keeps values computed from integers in fp32.
            LegalizeIntegerLookups()(graph)
            ConvertPrecision("bf16")(graph)
        super().emulate(graph, precision)


TARGET = OpenVinoTarget()


# From ONNX to a model -----------------------------------------------------------------------------


def _convert(program: Lowered, proto: onnx.ModelProto) -> openvino.Model:
    ov = import_openvino()
    try:
        return ov.Core().read_model(proto.SerializeToString())
    except RuntimeError as error:
        raise CompileError(
            f"OpenVINO's frontend does not take {_culprit(program.graph, str(error))} of program "
            f"{program.name!r}",
            found=_reason(str(error)),
            hint="export to another target, or change the module named here",
        ) from error


def _culprit(graph: Graph, message: str) -> str:
    """The node that a message of the frontend means, described for a person."""
    nodes = list(ir.traversal.RecursiveGraphIterator(graph.graph))
    if match := re.search(r"ONNX node '<Node\((\w+)\): ?([^>]*)>'", message):
        for node in nodes:
            if match[2] in {node.name, *(v.name for v in node.outputs)}:
                return describe(node)
    for op_type in re.findall(r"\b(\w+)-\d+\b", message):
        for node in nodes:
            if node.op_type == op_type:
                return describe(node)
    return "the graph"


def _reason(message: str) -> str:
    """The part of a frontend's message that says what is wrong, in one line."""
    if match := re.search(r"No conversion rule found for operations: ([^\n]*)", message):
        return f"no conversion rule for {match[1].strip()}"
    detail = re.search(r"with a message:\s*(.*?)(?:\n\s*\n|\nSummary|$)", message, re.DOTALL)
    lines = [line.strip() for line in (detail[1] if detail else message).splitlines()]
    said = [n for n in lines if n and not n.startswith(("Exception from", "Check '", "While "))]
    return (said or [n for n in lines if n] or ["no reason given"])[-1][:300]


def _bound_and_name(model: openvino.Model, program: Lowered) -> None:
    """Give a model all of the program's inputs, with their bounds, and reproducible names.

    Names that OpenVINO makes up hold a counter of the process, and differ from run to run.
    """
    ov = import_openvino()
    parameters = {p.get_friendly_name(): p for p in model.get_parameters()}
    for spec in program.inputs:
        if spec.name not in parameters:  # nothing depends on it, so the frontend left it out
            parameter = ov.opset15.parameter([], _element_type(spec), name=spec.name)
            parameter.output(0).get_tensor().set_names({spec.name})
            model.add_parameters([parameter])
    model.reshape({spec.name: _partial_shape(spec, program.dims) for spec in program.inputs})
    model.set_friendly_name(program.name)
    own = {node.name for node in program.graph.graph} | {spec.name for spec in program.inputs}
    for position, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name == node.get_name() or (name not in own and _COUNTED.fullmatch(name)):
            node.set_friendly_name(f"{node.get_type_name()}/{position}")


def _element_type(spec: TensorSpec) -> Any:
    import numpy as np

    return import_openvino().Type(np.dtype(spec.dtype))


def _partial_shape(spec: TensorSpec, dims: Mapping[str, Dim]) -> openvino.PartialShape:
    ov = import_openvino()
    bounds = [_bounds(dim, dims) for dim in spec.shape]
    return ov.PartialShape(
        [ov.Dimension(-1) if high is None else ov.Dimension(low, high) for low, high in bounds]
    )


def _bounds(dim: DimLike, dims: Mapping[str, Dim]) -> tuple[int, int | None]:
    """The least and the greatest size of a dimension; None where it has no bound."""
    if isinstance(dim, int):
        return dim, dim
    if dim in dims:
        return dims[dim].min, dims[dim].max
    terms = [Dim(int(t), int(t)) if t.isdigit() else dims.get(t, Dim(0)) for t in dim_terms(dim)]
    greatest = [term.max for term in terms]
    return (
        sum(term.min for term in terms),
        None if None in greatest else sum(g for g in greatest if g is not None),
    )


# What the frontend takes --------------------------------------------------------------------------


def _ask_about(node: ir.Node) -> bytes | None:
    """A Graph of this node alone, or None where types are unknown or there are inner graphs.

    Names are replaced, and only small constants keep their values, so that equal nodes of many
    layers give equal bytes.
    """
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes(node)):
        return None
    inputs: list[ir.Value | None] = []
    constants = []
    renamed: dict[ir.Value, ir.Value] = {}
    for value in node.inputs:
        if value is None:
            inputs.append(None)
            continue
        if value.dtype is None:
            return None
        if value not in renamed:
            renamed[value] = ir.Value(
                name=f"i{len(renamed)}", type=value.type, shape=_anonymous(value.shape)
            )
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
                renamed[value].const_value = ir.tensor(
                    tensor.numpy(), dtype=tensor.dtype, name=renamed[value].name
                )
                constants.append(renamed[value])
        inputs.append(renamed[value])
    alone = ir.Node(
        "", node.op_type, inputs, _attributes(node), num_outputs=len(node.outputs), name="node"
    )
    for position, (value, new) in enumerate(zip(node.outputs, alone.outputs, strict=True)):
        new.name = f"o{position}" if value.name else ""
        new.type, new.shape = value.type, None
    graph = ir.Graph(
        [value for value in renamed.values() if value.const_value is None],
        [value for value in alone.outputs if value.name],
        nodes=[alone],
        initializers=constants,
        opset_imports={"": OPSET},
        name="question",
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    return proto.SerializeToString(deterministic=True)


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return [node.attributes[name] for name in sorted(node.attributes)]


def _anonymous(shape: ir.Shape | None) -> ir.Shape | None:
    if shape is None:
        return None
    return ir.Shape([dim if isinstance(dim, int) else None for dim in shape])


@functools.lru_cache(maxsize=4096)
def _frontend_refusal(question: bytes) -> str | None:
    """Why OpenVINO's frontend does not take a Graph of one node, or None."""
    try:
        import_openvino().Core().read_model(question)
    except RuntimeError as error:
        return f"OpenVINO's frontend: {_reason(str(error))}"
    return None
