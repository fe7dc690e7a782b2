"""Names in anyone's ONNX file: which module a node came from, and what dimensions are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from omnigraph.graph import MODULE_KEY, SOURCE_KEY, Graph, inherit_provenance
from omnigraph.program import TensorSpec, dim_terms

#: Names that exporters give to dimensions, and ours for them.
_USUAL = {
    "batch_size": "batch",
    "batchsize": "batch",
    "sequence_length": "sequence",
    "seq_length": "sequence",
    "seq_len": "sequence",
    "seqlen": "sequence",
    "seq": "sequence",
    "past_sequence_length": "past",
    "past_seq_len": "past",
    "past_length": "past",
    "past_len": "past",
    "decoder_sequence_length": "decoder_sequence",
    "total_sequence_length": "past + sequence",
}
_WORD = re.compile(r"[A-Za-z_]\w*")
#: Stands for the path of the whole model, which is empty.
_WHOLE = "model"
#: torch's text for a module that it does not know.
_UNKNOWN_SCOPE = "_empty_nn_module_stack_from_metadata_hook"


def keep_provenance(graph: Graph) -> None:
    """Give every node the module it came from, as far as the exporter wrote it down.

    The exporter of today writes the path of each module into the node's metadata; the one before
    names nodes by it, ``/encoder/layer.0/attention/MatMul_1``, and so do some others. A node with
    neither gets the module of its neighbours. All other metadata is removed.
    """
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        found = node.metadata_props
        module = (
            found.get(MODULE_KEY)
            or _module_of_scopes(found.get("pkg.torch.onnx.name_scopes", ""))
            or _module_of_name(node.name or "")
        )
        source = found.get(SOURCE_KEY) or _source_line(found.get("pkg.torch.onnx.stack_trace", ""))
        node.metadata_props.clear()
        node.meta.clear()
        node.doc_string = None
        if module:
            node.metadata_props[MODULE_KEY] = module
        if source:
            node.metadata_props[SOURCE_KEY] = source
    inherit_provenance(graph)
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        node.metadata_props.setdefault(MODULE_KEY, _WHOLE)
    graph.metadata_props.clear()
    graph.producer_name, graph.producer_version = "omnigraph", None
    for value in (*values_of(graph), *graph.graph.initializers.values()):
        value.metadata_props.clear()
        value.meta.clear()


def _module_of_scopes(scopes: str) -> str:
    """The innermost module of torch's list of scopes, whose last entry is the operation itself."""
    names = re.findall(r"'([^']*)'", scopes)[:-1]
    if not names or _UNKNOWN_SCOPE in names:
        return ""
    return next((name for name in reversed(names) if name), _WHOLE)


def _module_of_name(name: str) -> str:
    """``/encoder/layer.0/attention/MatMul_1`` is of module ``encoder.layer.0.attention``."""
    if "/" not in name:
        return ""
    scope = name.rpartition("/")[0].strip("/")
    return re.sub(r"/+", ".", scope) or _WHOLE


def _source_line(stack: str) -> str:
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [f for f in frames if not f[0].startswith("<") and "site-packages/torch/" not in f[0]]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def name_axes(graph: Graph) -> tuple[dict[str, dict[int, str]], dict[str, str]]:
    """Names for the dimensions of a file's inputs that are no numbers.

    Keeps the file's names. Renames spellings of ours (``batch_size`` is ``batch``), and the two
    axes of token ids: ``batch`` and ``sequence``. A dimension without a usable name is called by
    its input and axis.

    Returns:
        For each input, axis to name; and the file's names to ours, where they differ.
    """
    inputs = list(graph.graph.inputs)
    own = {
        word: None
        for value in inputs
        for dim in value.shape or ()
        if isinstance(dim, ir.SymbolicDim)
        for word in _WORD.findall(str(dim.value or ""))
    }
    renamed: dict[str, str] = {}
    for word, usual in _usual_places(inputs):
        if usual not in own and usual not in renamed.values():
            renamed.setdefault(word, usual)
    # A sum comes last: it needs its terms.
    for word in sorted(own, key=lambda word: "+" in (_USUAL.get(word) or word)):
        usual = _USUAL.get(word, word)
        there = {*own, *renamed.values()}
        if usual not in there and ("+" not in usual or there.issuperset(dim_terms(usual))):
            renamed.setdefault(word, usual)
    axes: dict[str, dict[int, str]] = {}
    for value in inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim):
                name = _renamed(str(dim.value or ""), renamed)
                if not name or not all(t.isidentifier() or t.isdigit() for t in dim_terms(name)):
                    name = _place_name(value, axis, usual=not name)
                axes.setdefault(value.name or "", {})[axis] = name
    return axes, {word: name for word, name in renamed.items() if word != name}


def _usual_places(inputs: list[ir.Value]) -> Iterator[tuple[str, str]]:
    """The file's names of the two dimensions of token ids, and ours for them."""
    for value in inputs:
        if len(value.shape or ()) != 2 or not (value.name or "").endswith("ids"):
            continue
        length = "decoder_sequence" if "decoder" in (value.name or "") else "sequence"
        for dim, usual in zip(value.shape or (), ("batch", length), strict=True):
            word = str(dim.value or "") if isinstance(dim, ir.SymbolicDim) else ""
            if word.isidentifier():
                yield word, usual


def _place_name(value: ir.Value, axis: int, *, usual: bool) -> str:
    """A name for a dimension that has none: that of its input and axis, or the usual one."""
    own = value.name or ""
    if usual and axis == 0:
        return "batch"
    if usual and axis == 1 and own.endswith(("ids", "mask")):
        return "decoder_sequence" if "decoder" in own else "sequence"
    return re.sub(r"\W", "_", f"dim_{own}_{axis}")


def rename_dimensions(
    graph: Graph,
    specs: Sequence[TensorSpec],
    renamed: Mapping[str, str],
    fixed: Mapping[str, int],
) -> None:
    """Give the inputs the shapes of ``specs``, and call dimensions inside by the same names.

    Other dimensions are left open: exporters give them names without a meaning (``Add_dim_0``),
    which shape inference would not replace.

    Args:
        renamed: the file's names of dimensions to those in ``specs``.
        fixed: dimensions that have one size.
    """
    known = {t for spec in specs for d in spec.shape if isinstance(d, str) for t in dim_terms(d)}

    def rename(dim: Any) -> Any:
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            return dim
        text = _renamed(str(dim.value), renamed)
        if text in fixed:
            return fixed[text]
        return ir.SymbolicDim(text if known.issuperset(_WORD.findall(text)) else None)

    for value in values_of(graph):
        if value.shape is not None:
            value.shape = ir.Shape([rename(dim) for dim in value.shape])
    for value, spec in zip(graph.graph.inputs, specs, strict=True):
        value.shape = ir.Shape(spec.shape)


def _renamed(text: str, renamed: Mapping[str, str]) -> str:
    return _WORD.sub(lambda match: renamed.get(match[0], match[0]), text)


def values_of(graph: Graph) -> Iterator[ir.Value]:
    """The inputs of a Graph, and the outputs of every node, of inner graphs too."""
    yield from graph.graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        yield from node.outputs
