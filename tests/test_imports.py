"""Who may import whom, read from the syntax trees; and what running an artifact really imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("omnigraph", "passes", "runtimes", "models")
VENDORS = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "jax", "nncf")
COMPILING = ("torch", "onnx", "onnx_ir", "onnxscript")

#: The layers, from the bottom: each imports only those before it. Data flows through them in
#: another order: frontends, tracing, passes, lowering, contract, artifact, runtimes.
LAYERS = (
    ("errors",),
    ("progress",),
    ("report", "option_field", "precision"),
    ("graph",),
    ("external_weights", "program"),
    ("input_sets",),
    ("artifact",),
    ("contract",),
    ("runtimes",),  # beside: what an application embeds
    ("models",),
    ("passes",),
    ("testing",),  # beside: what tests of passes import
    ("tracing",),
    ("frontends",),
    ("lowering",),
    ("ledger",),
    ("export_job",),
    ("manifest",),
    ("emitter",),
    ("head_variants", "quantization"),
    ("exporting",),
    ("driver",),
    ("inspection",),
    ("cli",),
    ("__main__",),
)

#: What an artifact needs to run: these may import only each other, numpy and the standard library.
EMBEDDED = (
    "omnigraph",
    "omnigraph.artifact",
    "omnigraph.artifact.artifact",
    "omnigraph.artifact.exchange",
    "omnigraph.artifact.json_shape",
    "omnigraph.artifact.publishing",
    "omnigraph.artifact.schema",
    "omnigraph.artifact.sealing",
    "omnigraph.artifact.signature",
    "omnigraph.artifact.staging_folder",
    "omnigraph.artifact.zip_file",
    "omnigraph.cli",
    "omnigraph.cli.artifact_commands",
    "omnigraph.cli.completion",
    "omnigraph.cli.export_command",
    "omnigraph.cli.generate_command",
    "omnigraph.cli.main",
    "omnigraph.cli.model_commands",
    "omnigraph.cli.output",
    "omnigraph.cli.parser",
    "omnigraph.cli.quantization_options",
    "omnigraph.contract",
    "omnigraph.contract.tolerance",
    "omnigraph.errors",
    "omnigraph.exporting",
    "omnigraph.exporting.options",
    "omnigraph.head_variants",
    "omnigraph.head_variants.counts",
    "omnigraph.inspection",
    "omnigraph.inspection.targets",
    "omnigraph.option_field",
    "omnigraph.precision",
    "omnigraph.program",
    "omnigraph.progress",
    "omnigraph.quantization",
    "omnigraph.quantization.metrics",
    "omnigraph.quantization.metrics.registry",
    "omnigraph.quantization.options",
    "omnigraph.report",
)


def modules() -> Iterator[tuple[str, Path]]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            prefix = () if folder == "omnigraph" else ("omnigraph",)
            name = ".".join((*prefix, *parts)).removesuffix(".__init__")
            yield name, path


def imports(name: str, path: Path, *, top_level: bool = False) -> set[str]:
    """Absolute names that a file imports; with ``top_level``, only when it is itself imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_at_import(tree)) if top_level else list(ast.walk(tree))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def _at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the file is imported: not in functions, not for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _at_import(node)


def uses(found: set[str], packages: tuple[str, ...]) -> set[str]:
    return {n for n in found for p in packages if n == p or n.startswith(p + ".")}


ALL = dict(modules())


def select(prefix: str) -> list[str]:
    return [n for n in ALL if n == prefix or n.startswith(prefix + ".")]


def test_the_folders_are_found():
    assert {"omnigraph.passes.base", "omnigraph.runtimes.base", "omnigraph.models"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_mapped_folders_are_imported_by_their_full_names(name: str):
    assert not uses(imports(name, ALL[name]), ("passes", "runtimes", "models"))


@pytest.mark.parametrize("name", select("omnigraph.runtimes"))
def test_runtimes_import_no_torch_no_onnx_and_no_pass(name: str):
    found = imports(name, ALL[name])
    allowed = (
        "omnigraph.runtimes",
        "omnigraph.artifact",
        "omnigraph.errors",
        "omnigraph.contract.tolerance",
        "omnigraph.precision",
        "omnigraph.program",
    )
    assert not uses(found, COMPILING)
    own = uses(found, ("omnigraph",)) - {"omnigraph"}
    assert own == uses(own, allowed)


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_an_artifact_needs_imports_only_numpy_at_first(name: str):
    found = imports(name, ALL[name], top_level=True)
    assert not uses(found, (*COMPILING, *VENDORS, "rich"))
    own = {n for n in uses(found, ("omnigraph",)) if n in ALL}
    assert own <= set(EMBEDDED)


def layer_of(name: str) -> int:
    """The place of a module's layer, from the bottom."""
    part = name.split(".")[1]
    (place,) = (place for place, layer in enumerate(LAYERS) if part in layer)
    return place


def modules_used(name: str) -> set[str]:
    """The modules of this project that a module imports, whenever."""
    found = imports(name, ALL[name])
    direct = {n for n in found if n in ALL}
    # ``from package import name`` runs the package; a module named so is what is meant.
    return {n for n in direct if not any(m.startswith(n + ".") for m in direct)} - {name}


@pytest.mark.parametrize("name", [n for n in ALL if n != "omnigraph"])
def test_a_layer_imports_only_those_before_it(name: str):
    used = modules_used(name) - {"omnigraph"}
    above = {n for n in used if layer_of(n) > layer_of(name)}
    assert not above
    # Folders of one layer do not lean on each other.
    beside = {n for n in used if layer_of(n) == layer_of(name)}
    assert {n.split(".")[1] for n in beside} <= {name.split(".")[1]}


def test_files_import_each_other_in_no_circle():
    # The package imports its parts when they are asked for by name, and every part runs it first.
    uses_of = {name: modules_used(name) - {"omnigraph"} for name in ALL if name != "omnigraph"}
    while free := [name for name, used in uses_of.items() if not used & uses_of.keys()]:
        for name in free:
            del uses_of[name]
    assert not uses_of


@pytest.mark.parametrize("name", select("omnigraph.passes"))
def test_passes_import_no_torch_and_no_vendor(name: str):
    assert not uses(imports(name, ALL[name]), ("torch", *VENDORS))


@pytest.mark.parametrize("name", select("omnigraph.passes"))
def test_no_pass_names_a_target(name: str):
    """Passes are for every target; a docstring may say which runtime needs one, and why."""
    tree = ast.parse(ALL[name].read_text(encoding="utf-8"))
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Expr)]
    prose = {id(n.value) for n in documented if isinstance(n.value, ast.Constant)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in prose]
    named = re.compile("onnxruntime|openvino|tensorrt|^onnx$", re.IGNORECASE)
    assert not [n.value for n in texts if isinstance(n.value, str) and named.search(n.value)]


@pytest.mark.parametrize("name", select("omnigraph.models"))
def test_models_import_of_omnigraph_only_what_a_program_is(name: str):
    own = uses(imports(name, ALL[name]), ("omnigraph",)) - {"omnigraph"}
    assert own == uses(own, ("omnigraph.models", "omnigraph.program"))


SPINE = [n for n in ALL if not n.startswith(tuple(f"omnigraph.{f}" for f in FOLDERS[1:]))]


#: What calls and exports a module, what makes a module of a file or folder, and what learns.
TORCH = {
    "omnigraph.quantization.learned_rounding",
    "omnigraph.quantization.torch_nodes",
    "omnigraph.tracing.indexed_tables",
    "omnigraph.tracing.module_call",
    "omnigraph.tracing.reference",
    "omnigraph.tracing.torch_export",
    "omnigraph.tracing.hidden_rows",
    "omnigraph.tracing.transformers_forms",
    "omnigraph.frontends.encoder_decoder",
    "omnigraph.frontends.grouped_linear",
    "omnigraph.frontends.onnx_inputs",
    "omnigraph.frontends.onnx_module",
    "omnigraph.frontends.onnx_program",
    "omnigraph.frontends.packed_folder",
    "omnigraph.frontends.packed_weights",
    "omnigraph.frontends.left_padding",
    "omnigraph.frontends.position_tables",
    "omnigraph.frontends.pt2_file",
    "omnigraph.frontends.sentence_embedding",
    "omnigraph.frontends.pt2_safety",
    "omnigraph.frontends.hugging_face",
    "omnigraph.frontends.hugging_face_inputs",
}


@pytest.mark.parametrize("name", SPINE)
def test_only_trace_and_the_sources_of_modules_import_torch_in_the_spine(name: str):
    found = imports(name, ALL[name], top_level=True)
    assert bool(uses(found, ("torch",))) == (name in TORCH)


@pytest.mark.parametrize("name", select("omnigraph.lowering"))
def test_lowering_knows_neither_driver_nor_torch(name: str):
    found = imports(name, ALL[name])
    assert not uses(
        found, ("omnigraph.driver", "omnigraph.cli.main", "omnigraph.tracing.trace", "torch")
    )
    # Of the runtimes, only what a Session is, how OpenVINO is imported and what vendors'
    # errors say, and which GPUs are here:
    # TensorRT builds on the one that it will run on.
    seen = uses(found, ("omnigraph.runtimes",)) - {"omnigraph.runtimes"}
    known = ("base", "cuda_driver", "openvino_package", "vendor_errors")
    assert seen == uses(seen, tuple(f"omnigraph.runtimes.{name}" for name in known))


VENDOR_FILES = {
    "omnigraph.contract.graph_check": {"onnxruntime"},  # numbers of a Graph, between passes
    "omnigraph.lowering.onnx.target": {"onnxruntime"},
    "omnigraph.lowering.openvino.target": {"openvino"},
    "omnigraph.lowering.openvino.attention": {"openvino"},
    "omnigraph.lowering.openvino.ir": {"openvino"},
    "omnigraph.lowering.openvino.unrounded": {"openvino"},
    "omnigraph.lowering.openvino.wide_positions": {"openvino"},
    "omnigraph.lowering.tensorrt.target": {"tensorrt", "tensorrt_rtx"},
    "omnigraph.lowering.tensorrt.build": {"tensorrt", "tensorrt_rtx"},
    "omnigraph.runtimes.onnx": {"onnxruntime"},
    "omnigraph.runtimes.openvino": {"openvino"},
    "omnigraph.runtimes.openvino_package": {"openvino"},
    "omnigraph.runtimes.tensorrt": {"tensorrt", "tensorrt_rtx"},
}


@pytest.mark.parametrize("name", ALL)
def test_a_vendor_is_imported_only_in_its_own_files(name: str):
    found = {n.partition(".")[0] for n in uses(imports(name, ALL[name]), VENDORS)}
    assert found <= VENDOR_FILES.get(name, set())


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_omnigraph_imports_no_torch_and_no_vendor():
    code = "import omnigraph, sys; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    assert not set(ast.literal_eval(run_python(code))) & {*COMPILING, *VENDORS, "numpy"}


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_running_an_artifact_imports_neither_torch_nor_onnx(target: str, tiny_artifacts):
    code = """
import sys, numpy, omnigraph
with omnigraph.load(sys.argv[1], verify=True) as net:
    out = net.run(input_ids=numpy.array([[1, 2, 3]]))
assert out["logits"].shape == (1, 3, 256)
print(sorted({m.partition('.')[0] for m in sys.modules}))
"""
    loaded = set(ast.literal_eval(run_python(code, str(tiny_artifacts[target]))))
    assert not loaded & {"torch", "onnx", "onnx_ir", "onnxscript", "ml_dtypes"}
    assert "omnigraph" in loaded
