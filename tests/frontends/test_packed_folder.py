"""Folders that GPTQ or AWQ quantized: their integers reach the artifact as they are."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import openvino
import pytest
import torch
from packed_folders import Packed, awq, edit_tensors, gptq, twin, worst_error, write
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

import omnigraph
from omnigraph.errors import UsageError
from omnigraph.frontends.grouped_linear import GroupedLinear
from omnigraph.frontends.resolve import resolve
from omnigraph.quantization.options import Quantization

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
ACT_ORDER = {**GPTQ, "desc_act": True, "checkpoint_format": "gptq_v2"}
WHOLE = {**GPTQ, "bits": 8, "group_size": -1}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
V2 = partial(gptq, version=2)
FORMS: Mapping[str, tuple[str, Callable[[Packed], Any], Mapping[str, Any], Mapping[str, bool]]] = {
    "gptq": ("llama", gptq, GPTQ, {"symmetric": True}),
    "gptq-act-order": ("llama", V2, ACT_ORDER, {"act_order": True}),
    "gptq-whole": ("gpt2", gptq, WHOLE, {}),
    "awq": ("llama", awq, AWQ, {}),
}


def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(1, 25).reshape(2, 12)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"]


def check_reference(folder: Path, layers: Mapping[str, Packed]) -> None:
    """The contract's reference is the dense model in float32."""
    (module, *_) = (program.module for program in resolve(folder).programs)
    found = {p: m for p, m in module.model.named_modules() if isinstance(m, GroupedLinear)}
    assert found.keys() == layers.keys()
    dense = AutoModelForCausalLM.from_pretrained(twin(folder)).eval()
    torch.testing.assert_close(logits(module), logits(dense), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_the_reference_is_the_dense_model(tmp_path: Path, name: str):
    model, pack, fields, form = FORMS[name]
    check_reference(tmp_path / name, write(tmp_path / name, model, pack, fields, **form))


#: The names of a layer's integers, by their type.
KINDS = ("quantized", "quantized_int4", "quantized_uint4", "quantized_int8")


def onnx_integers(artifact: Path) -> dict[str, np.ndarray]:
    """Values and zero points of packed layers, by name."""
    graph = ir.load(artifact / "forward.onnx").graph
    return {
        name: value.const_value.numpy().astype(np.int64)
        for name, value in graph.initializers.items()
        if ".quantized" in name or ".zero_points" in name
    }


def check_onnx(artifact: Path, layers: Mapping[str, Packed]) -> None:
    found = onnx_integers(artifact)
    for path, layer in layers.items():
        own = {name: array for name, array in found.items() if f"{path}." in name}
        (name,) = (n for n in own if n.rpartition(".")[2] in KINDS)
        zeros = next((array for n, array in own.items() if "zero_point" in n), None)
        middle = 2 ** (layer.bits - 1) if "_int" in name else 0
        np.testing.assert_array_equal(own[name] + middle, in_order(layer))
        if zeros is not None:
            np.testing.assert_array_equal(zeros, layer.zeros[0] if zeros.ndim == 1 else layer.zeros)
        assert (zeros is None) == bool(middle)


def in_order(layer: Packed) -> np.ndarray:
    """Its integers, groups after each other."""
    return layer.codes[np.argsort(layer.groups, kind="stable")]


def check_openvino(artifact: Path, layers: Mapping[str, Packed]) -> None:
    """The integers are among the constants, by their sorted values: OpenVINO transposes some."""
    model = openvino.Core().read_model(artifact / "forward.xml", artifact / "weights.bin")
    found = []
    for op in model.get_ops():
        if op.get_type_name() != "Constant" or len(op.shape) < 2:
            continue
        kind, data = op.get_element_type().get_type_name(), np.array(op.data).view(np.uint8)
        if kind in ("u4", "i4"):
            data = np.stack([data & 15, data >> 4], -1)
            data = (data ^ 8) if kind == "i4" else data
        found.append(np.bincount(data.ravel(), minlength=256).tolist())
    for layer in layers.values():
        assert np.bincount(layer.codes.ravel(), minlength=256).tolist() in found


SLOW = [("gptq-whole", "int8-weights"), ("awq", "int4-weights")]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("gptq", "int4-weights"),
        ("gptq-act-order", "fp32"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
    ],
)
def test_an_artifact_holds_the_integers_and_computes_the_dense_model(
    tmp_path: Path, name: str, precision: str
):
    model, pack, fields, form = FORMS[name]
    folder = tmp_path / name
    layers = write(folder, model, pack, fields, **form)
    (program, *_) = resolve(folder).programs
    reports = omnigraph.export(
        folder,
        ["onnx", "openvino"],
        precision=precision,
        programs=["forward"],
        quantization=None if precision == "fp32" else Quantization(keep=("*lm_head",)),
        out=tmp_path / "artifacts",
    )
    for report in reports:
        opened = tmp_path / report.target
        zipfile.ZipFile(report.path).extractall(opened)
        check = check_onnx if report.target == "onnx" else check_openvino
        check(opened, layers)
        rows = {row.layer.removeprefix("model."): row for row in report.layers["forward"]}
        wanted = {"gptq": "int4", "gptq-whole": "uint8"}.get(name, "uint4")
        assert {rows[path].weights for path in layers} == {wanted}
        assert rows["lm_head"].weights == "fp32"
        with omnigraph.load(report.path) as session:
            error = worst_error(session, folder, program)
        # Activations in eight bits, whose step is a 127th of the largest; or sums in another order.
        assert error < (2e-5 if precision == "fp32" else 0.1)


def test_tensorrt_takes_symmetric_integers(tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    options = {"precision": "int4-weights", "programs": ["forward"]}
    write(tmp_path / "a", "gpt2", gptq, GPTQ, symmetric=True)
    (report,) = omnigraph.export(tmp_path / "a", "tensorrt", out=tmp_path / "a.omni", **options)
    rows = [row for row in report.layers["forward"] if row.block == 32]
    assert len(rows) == 4 and {row.weights for row in rows} == {"int4"}


# What real folders hold ---------------------------------------------------------------------------


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))


def test_layers_that_were_left_in_float_and_biases_of_zeros(tmp_path: Path):
    folder = tmp_path / "a"
    layers = write(folder, "llama", gptq, GPTQ)
    left = "model.layers.0.mlp.down_proj"
    dense = layers.pop(left).dense

    def edit(tensors: dict[str, np.ndarray]) -> None:
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            del tensors[f"{left}.{part}"]
        tensors[f"{left}.weight"] = dense.T
        # As old versions of AutoGPTQ write it for layers that have no bias.
        tensors["model.layers.0.mlp.up_proj.bias"] = np.zeros(96, np.float16)

    edit_tensors(folder, edit)
    edit_config(folder, modules_to_not_convert=["down_proj"])
    check_reference(folder, layers)


def test_names_below_the_head(tmp_path: Path):
    """Some folders hold the names of the model without its head."""
    layers = write(tmp_path / "a", "gpt2", gptq, GPTQ)

    def edit(tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    edit_tensors(tmp_path / "a", edit)
    check_reference(tmp_path / "a", layers)


def test_a_folder_of_several_files(tmp_path: Path):
    folder = tmp_path / "a"
    layers = write(folder, "gpt2", gptq, GPTQ)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 2 + 1}-of-2.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        own = {name: array for name, array in tensors.items() if places[name] == file}
        save_file(own, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_reference(folder, layers)


def test_scales_keep_their_numbers_in_every_dtype(tmp_path: Path):
    layers = write(tmp_path / "a", "gpt2", gptq, GPTQ)
    source = resolve(tmp_path / "a", settings={"dtype": "bfloat16"})
    for path, module in source.programs[0].module.model.named_modules():
        if isinstance(module, GroupedLinear):
            wanted = layers[path].scales.astype(np.float32)
            np.testing.assert_array_equal(module.scales.numpy(), wanted)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_method": "compressed-tensors"}, "method that is not read.*found compressed-tens"),
        ({"quant_method": "fp8"}, "gptq or awq in its config.json, found fp8.*hint: gptq"),
        ({"quant_method": None, "load_in_4bit": True}, "found bitsandbytes"),
        ({"quant_method": "gtpq"}, "did you mean 'gptq'"),
        ({"checkpoint_format": "marlin"}, "found format marlin with 4 bits.*int4-weights"),
        ({"bits": 3}, "bits of 2, 4, 8, found format gptq with 3 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "by awq in.*format gemm.*found format gemv"),
        ({"quant_method": "awq", "backend": "llm-awq"}, "found format llm-awq"),
    ],
)
def test_other_methods_and_formats_are_refused_by_name(
    packed: Path, fields: Mapping[str, Any], message: str
):
    edit_config(packed, **fields)
    with pytest.raises(UsageError, match=f"(?s){message}"):
        resolve(packed)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    write(tmp_path / "a", "gpt2", gptq, GPTQ)
    return tmp_path / "a"


def test_a_missing_g_idx_is_refused_where_groups_hold_any_terms(packed: Path):
    edit_config(packed, desc_act=True)
    edit_tensors(packed, lambda tensors: tensors.pop("transformer.h.0.mlp.c_fc.g_idx"))
    with pytest.raises(UsageError, match=r"(?s)'transformer.h.0.mlp.c_fc'.*its g_idx: expec"):
        resolve(packed)


def test_wrong_shapes_are_refused_by_layer(packed: Path):
    def edit(tensors: dict[str, np.ndarray]) -> None:
        name = "transformer.h.0.attn.c_proj.qweight"
        tensors[name] = tensors[name][:-1]

    edit_tensors(packed, edit)
    with pytest.raises(UsageError, match=r"(?s)'transformer.h.0.attn.c_proj'.*its qweight: exp"):
        resolve(packed)


def test_packed_weights_that_no_layer_takes_are_refused(packed: Path):
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors["transformer.h.0.mlp.act.scales"] = np.ones(256, np.float16)

    edit_tensors(packed, edit)
    with pytest.raises(UsageError, match=r"(?s)GPT2LMHeadModel takes.*h.0.mlp.act.scales.*AWQ sc"):
        resolve(packed)
