"""Quantization-aware training: what is rounded, what is shared, what is learned, what is traced."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import omnigraph
from omnigraph.graph import count_ops
from omnigraph.input_sets import contract_cases
from omnigraph.models import ConfigError, OmniNet, OmniNetConfig
from omnigraph.models.fake_quantization import FakeQuantizer
from omnigraph.models.programs import programs
from omnigraph.passes.base import run_passes
from omnigraph.passes.pipelines import common
from omnigraph.tracing.trace import check_trace, reference_for, trace

KINDS = ("encoder", "decoder", "encoder-decoder")


def prepared(kind: str = "decoder", inputs: str = "uint8", **fields) -> OmniNet:
    """A tiny model that is rounded, its scales observed on the inputs of its contract."""
    config = OmniNetConfig.named("tiny", kind=kind, num_layers=2, **fields)
    model = OmniNet.from_seed(config, trained_like=True).eval()
    rounding = model.prepare_quantization(inputs)
    program = programs(model)[0]
    with rounding.observing(), torch.no_grad():
        for case in contract_cases(program):
            model(**program.make_inputs(case))
    return model


def logits(model: OmniNet, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids)


def ids(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 100, (batch, length), generator=torch.Generator().manual_seed(0))


def test_one_tensor_as_onnx_defines_it():
    for levels, dtype in (((0, 255), torch.uint8), ((-128, 127), torch.int8)):
        quantizer = FakeQuantizer(None, dtype, levels, symmetric=dtype == torch.int8)
        quantizer.scale.data.fill_(0.5)
        x = torch.tensor([0.25, 0.75, 1.25, -0.25, 1000.0, -1000.0])
        # Halves to even, and clamped where the type ends.
        low = levels[0] * 0.5
        expected = [0.0, 1.0, 1.0, 0.0, levels[1] * 0.5, low]
        assert quantizer(x).tolist() == expected


def test_the_model_is_close_to_the_float_one_and_coarser():
    model = prepared()
    floats = OmniNet.from_seed(
        OmniNetConfig.named("tiny", kind="decoder", num_layers=2), trained_like=True
    ).eval()
    with torch.no_grad():
        found, exact = logits(model, ids()), logits(floats, ids())
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < 0.05


def test_layers_that_read_one_tensor_share_its_scale():
    rounding = prepared("encoder-decoder").fake_quantization
    assert rounding is not None
    # Each side, two layers: query with key and value, output, up and down; across: query, output,
    # and one for what all cross-attentions read; the logits.
    assert len(rounding.inputs) == 2 * 4 + 2 * (4 + 2) + 1 + 1
    tied = [key for key in rounding.weights if "embedding" in key or key == "output"]
    assert tied == ["token_embedding"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", ["none", "bfloat16"])
def test_weights_and_scales_are_trained(autocast: str, checkpointing: bool):
    model = prepared(autocast=autocast, gradient_checkpointing=checkpointing).train()
    assert model.fake_quantization is not None
    model.fake_quantization.learn()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("scale")}
    scales = [p for n, p in model.named_parameters() if n.endswith("scale")]
    rest = [p for n, p in model.named_parameters() if not n.endswith("scale")]
    optimizer = torch.optim.AdamW([{"params": rest, "lr": 3e-3}, {"params": scales, "lr": 1e-5}])
    tokens, losses = ids(4, 12), []
    for _ in range(15):
        out = logits(model, tokens[:, :-1])
        loss = F.cross_entropy(out.flatten(0, 1).float(), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in scales)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    after = dict(model.named_parameters())
    assert all(not torch.equal(after[name], scale) for name, scale in before.items())
    assert all((after[name] > 0).all() for name in before)


def test_scales_that_are_kept_have_no_gradient():
    model = prepared().train()
    assert model.fake_quantization is not None
    model.fake_quantization.learn(False)
    logits(model, ids()).sum().backward()
    assert not any(q.scale.requires_grad for q in model.fake_quantization.quantizers())
    assert model.token_embedding.weight.grad is not None


def test_saved_and_loaded_and_copied(tmp_path: Path):
    model = prepared()
    model.save(tmp_path)
    for other in (OmniNet.load(tmp_path).eval(), copy.deepcopy(model)):
        assert other.config == model.config
        assert torch.equal(logits(other, ids()), logits(model, ids()))


def test_what_cannot_be_prepared():
    model = prepared()
    with pytest.raises(ConfigError, match="prepared once"):
        model.prepare_quantization()
    with pytest.raises(ConfigError, match="prune heads before"):
        model.prune_heads({0: [1]})
    other = OmniNet.from_seed(OmniNetConfig.named("tiny", kind="decoder"))
    with pytest.raises(ConfigError, match="quantization"):
        other.prepare_quantization("int3")
    assert other.config.quantization == "none"


@pytest.mark.parametrize(
    ("kind", "inputs"), [("encoder", "int8"), ("decoder", "uint8"), ("encoder-decoder", "uint8")]
)
def test_the_trace_has_the_trained_scales_exactly(kind: str, inputs: str):
    model = prepared(kind, inputs)
    rounding = model.fake_quantization
    assert rounding is not None
    for quantizer in rounding.quantizers():  # as after training: no scale is what was observed
        quantizer.scale.data.mul_(1.01)
    program = programs(model)[0]
    graph = trace(program)
    references = [reference_for(program, case) for case in contract_cases(program)]
    check_trace(program, graph, references)
    run_passes(graph, common())
    check_trace(program, graph, references)
    assert count_ops(graph)["QuantizeLinear"] == len(rounding.inputs)
    trained = {float(q.scale) for q in rounding.inputs.values()}
    nodes = [node for node in graph.graph if node.op_type == "QuantizeLinear"]
    assert {float(node.inputs[1].const_value.numpy()) for node in nodes} == trained
    stored = graph.graph.initializers.items()
    channels = [v.const_value.numpy() for name, v in stored if name.endswith("int8_scale")]
    for quantizer in rounding.weights.values():
        scale = quantizer.scale.detach().numpy()
        assert any(np.array_equal(scale, other) for other in channels)
    assert not any(
        value.const_value.nbytes > 4096 and value.dtype.is_floating_point()
        for name, value in graph.graph.initializers.items()
        if "position" not in name
    )


def test_an_export_needs_no_calibration_and_is_within_its_contract(tmp_path: Path):
    prepared("decoder").save(tmp_path / "model")
    reports = omnigraph.export(
        tmp_path / "model", ["onnx", "openvino"], precision="int8", out=tmp_path / "out"
    )
    for report in reports:
        assert "source" not in report.quantization
        rows = {(row.weights, row.activations) for row in report.layers["forward"]}
        assert ("int8", "uint8") in rows and ("fp32", "fp32") not in rows
