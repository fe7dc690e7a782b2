"""Roles: given by the frontends from names, and the only thing that all else decides by."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from omnigraph.artifact import Artifact
from omnigraph.frontends.module import program_from_module
from omnigraph.frontends.onnx_program import program_from_onnx
from omnigraph.frontends.resolve import resolve
from omnigraph.frontends.roles import role_of_name, state_of
from omnigraph.graph import role_of
from omnigraph.program import ROLES, Dim, Program, TensorSpec
from omnigraph.tracing.trace import output_specs

ROOT = Path(__file__).parents[2]
TEXT = {"input_ids": "tokens", "attention_mask": "mask"}
TARGET = {f"decoder_{name}": role for name, role in TEXT.items()}


def cache(stem: str, role: str, layers: int) -> dict[str, str]:
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return {f"{stem}_key_values.{part}": role for part in parts}


def roles_of(program: Program) -> dict[str, str]:
    """The role of every tensor of a program, those without one too."""
    return {spec.name: spec.role for spec in program.inputs} | {
        name: program.output_roles[name] for name in program.outputs
    }


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("input_ids", "tokens"),
        ("decoder_input_ids", "tokens"),
        ("token_type_ids", "segments"),
        ("encoder_attention_mask", "mask"),
        ("mask", ""),
        ("position_ids", "positions"),
        ("past_key_values.11.key", "past"),
        ("past_0_decoder_value", "past"),
        ("present.3.value", "present"),
        ("past_key", ""),
        ("inputs_embeds", "embeddings"),
        ("last_hidden_state", "embeddings"),
        ("hidden_states.2", "embeddings"),
        ("pooler_output", "embeddings"),
        ("pixel_values", "features"),
        ("logits", "logits"),
        ("start_logits", ""),
        ("labels", "labels"),
        ("output.0", ""),
    ],
)
def test_the_role_of_a_name(name: str, role: str):
    assert role_of_name(name) == role
    assert not role or role in ROLES


def test_a_past_goes_with_the_present_of_its_layer_and_part():
    inputs = ["past_key_values.0.key", "past_key_values.0.value", "past_1_key", "input_ids"]
    outputs = ["present.0.value", "present_key_values.0.key", "logits"]
    assert state_of(inputs, outputs) == {
        "past_key_values.0.key": "present_key_values.0.key",
        "past_key_values.0.value": "present.0.value",
    }


@pytest.mark.parametrize("kind", ["encoder", "decoder", "encoder-decoder"])
def test_programs_of_omninet(kind: str):
    source = resolve("omninet", config="tiny", settings={"kind": kind})
    found = {program.name: roles_of(program) for program in source.programs}
    both = kind == "encoder-decoder"
    expected = {"forward": {**TEXT, **(TARGET if both else {}), "logits": "logits"}}
    cross = cache("cross", "", 2) if both else {}
    if kind != "decoder":
        expected["encode"] = {**TEXT, "last_hidden_state": "embeddings", **cross}
    if kind != "encoder":
        own = {**TARGET, "attention_mask": "mask", **cross} if both else TEXT
        expected["decode"] = {
            **own, **cache("past", "past", 2), **cache("present", "present", 2), "logits": "logits",
        }  # fmt: skip
    assert found == expected


def hugging_face(name: str) -> Any:
    import transformers as hf

    small = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    torch.manual_seed(0)
    if name == "bert":
        return hf.BertModel(hf.BertConfig(**small))
    if name == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**small, num_key_value_heads=1))
    return hf.T5ForConditionalGeneration(
        hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=50)
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "bert",
            {
                "forward": {
                    **TEXT, "token_type_ids": "segments",
                    "last_hidden_state": "embeddings", "pooler_output": "embeddings",
                }
            },
        ),
        (
            "llama",
            {
                "forward": {**TEXT, "logits": "logits"},
                "decode": {
                    **TEXT,
                    **cache("past", "past", 1),
                    **cache("present", "present", 1),
                    "logits": "logits",
                },
            },
        ),
        (
            "t5",
            {
                "forward": {**TEXT, **TARGET, "logits": "logits"},
                "encode": {**TEXT, "last_hidden_state": "embeddings", **cache("cross", "", 1)},
                "decode": {
                    **TARGET,
                    "attention_mask": "mask",
                    **cache("cross", "", 1),
                    **cache("past", "past", 1),
                    **cache("present", "present", 1),
                    "logits": "logits",
                },
            },
        ),
    ],
)  # fmt: skip
def test_folders_of_hugging_face(tmp_path: Path, name: str, expected: dict[str, Any]):
    hugging_face(name).eval().save_pretrained(tmp_path / name)
    source = resolve(tmp_path / name)
    assert {program.name: roles_of(program) for program in source.programs} == expected
    for program in source.programs:
        defaults = {spec.role: spec.default for spec in program.inputs}
        assert defaults["tokens"] is None and defaults["mask"] == 1
        assert defaults.get("past", 0) == 0


def test_an_onnx_file(tmp_path: Path):
    text = """
        <ir_version: 8, opset_import: ["": 18]>
        step (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
              float[batch, 2, past, 4] past_key_values_0_key, float[batch, sequence] scale)
          => (float[batch, sequence] logits, float[batch, 2, past, 4] present_0_key,
              int64[batch, total] seen)
        {
            ids = Cast<to = 1>(input_ids)
            logits = Mul(ids, scale)
            present_0_key = Neg(past_key_values_0_key)
            seen = Neg(attention_mask)
        }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "step.onnx")
    program = program_from_onnx(tmp_path / "step.onnx")
    assert roles_of(program) == {
        **TEXT,
        "past_key_values_0_key": "past",
        "scale": "",
        "logits": "logits",
        "present_0_key": "present",
        "seen": "",
    }
    assert program.state == (("past_key_values_0_key", "present_0_key"),)


class Counts(torch.nn.Module):
    def forward(self, input_ids: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": input_ids * weights, "sums": weights + 1}


def test_a_module_and_programs_that_are_given():
    inputs = {"input_ids": torch.tensor([[1, 2], [3, 4]]), "weights": torch.rand(2, 2)}
    expected = {"input_ids": "tokens", "weights": "", "logits": "logits", "sums": ""}
    assert roles_of(program_from_module(Counts(), inputs)) == expected
    shape = ("batch", "sequence")
    named = TensorSpec("input_ids", "int64", shape)
    chosen = TensorSpec("weights", "float32", shape, role="features")
    given = Program(
        "forward", Counts(), (named, chosen), ("logits", "sums"), {"batch": Dim(1)}, lambda _: {},
        output_roles={"sums": "labels"},
    )  # fmt: skip
    (found,) = resolve(given).programs
    assert roles_of(found) == {**expected, "weights": "features", "sums": "labels"}


def test_a_graph_and_its_copies_know_the_roles(traced):
    made = traced("decode", kind="decoder", positions="alibi")
    copy = made.graph.clone()
    for spec in (*made.program.inputs, *output_specs(copy)):
        assert spec.role and role_of(copy, spec.name) == spec.role
    assert role_of(copy, "nothing") == ""


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_an_artifact_knows_the_roles(tiny_artifacts, target: str):
    for entry in Artifact(tiny_artifacts[target]).programs.values():
        for spec in (*entry.inputs, *entry.outputs):
            assert spec.role == role_of_name(spec.name)


# All else ----------------------------------------------------------------------------------------

#: What names are made of that say what a tensor is for.
NAMES = (
    *("input_ids", "attention_mask", "position_ids", "token_type", "logits", "labels"),
    *("past_key", "present_key", "cross_key", "hidden_state", "inputs_embeds", "pixel_values"),
)
#: Methods and functions by which a text is tested or taken apart.
TESTS = {"startswith", "endswith", "removeprefix", "removesuffix", "replace", "find", "split"}
TESTS |= {"partition", "rpartition", "match", "fullmatch", "search", "compile", "fnmatch"}
#: The folders that make programs, and those that make models: there, names are made.
MAKERS = (ROOT / "omnigraph" / "frontends", ROOT / "models")


def below_the_frontends() -> Iterator[Path]:
    for folder in ("omnigraph", "passes", "runtimes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not any(path.is_relative_to(maker) for maker in MAKERS):
                yield path


def texts(node: ast.AST) -> Iterator[str]:
    return (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and type(n.value) is str)


def is_role(node: ast.expr) -> bool:
    """Whether an expression is a role: ``spec.role``, or ``role_of(graph, name)``."""
    if isinstance(node, ast.Attribute):
        return node.attr == "role"
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == "role_of"


def decisions_by_name(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            asked = [] if any(map(is_role, sides)) else sides
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            asked = node.args if called in TESTS else []
        for part in asked:
            for text in texts(part):
                if any(name in text for name in NAMES):
                    yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "path", list(below_the_frontends()), ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_below_the_frontends_decides_by_a_name(path: Path):
    assert not list(decisions_by_name(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('spec.name.endswith("attention_mask")', True),
        ('name == "logits"', True),
        ('"labels" in feeds', True),
        ('name in ("input_ids", "decoder_input_ids")', True),
        ('name.replace("input_ids", "attention_mask")', True),
        ('spec.role == "logits"', False),
        ('role_of(graph, value.name) in ("labels", "logits")', False),
        ('feeds.get("labels")', False),
        ('raise Error(hint="logits")', False),
    ],
)
def test_what_counts_as_a_decision_by_name(code: str, found: bool):
    assert bool(list(decisions_by_name(ast.parse(code)))) == found
