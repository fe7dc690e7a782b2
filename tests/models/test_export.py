"""The model as others trace it: dynamic sizes, one Attention node each, right in onnxruntime."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omnigraph.models import AttentionPattern, OmniNet, OmniNetConfig

onnxruntime = pytest.importorskip("onnxruntime")

ATOL = 2e-5  # one or two layers in float32, summed in another order
POSITIONS = ["absolute", "sinusoidal", "relative", "rotary", "alibi"]
#: Of which the fast suite has whole models elsewhere.
OTHERS = ["absolute", "sinusoidal", "alibi"]
DYNAMIC = torch.export.Dim.DYNAMIC
TOKENS = {0: DYNAMIC, 1: DYNAMIC}


class Decode(nn.Module):
    """The method `decode` as a module."""

    def __init__(self, model: OmniNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids, mask, past, cross=None, cross_mask=None):
        return self.model.decode(ids, mask, past, cross, cross_mask)


def flat(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Sequence):
        for item in value:
            yield from flat(item)


def tokens_and_mask(batch: int, length: int, past: int = 0) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, past + length, dtype=torch.int64)
    if batch > 1 and past + length > 3:
        mask[0, -1:] = 0
        mask[1, :2] = 0
    return torch.randint(256, (batch, length)), mask


def cache(model: OmniNet, which: str, batch: int, length: int) -> list[tuple[Tensor, Tensor]]:
    heads = [
        len(model.config.kept_heads(name))
        for name in model.config.attention_names()
        if name.startswith("decoder") and name.endswith(which)
    ]
    return [
        (torch.randn(batch, count, length, 16), torch.randn(batch, count, length, 16))
        for count in heads
    ]


def assert_export_is_right(module, example, shapes, others, attentions) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        program = torch.onnx.export(exported, dynamo=True, opset_version=24, verbose=False)
    operators = [node.op_type for node in program.model.graph]
    assert operators.count("Attention") == attentions
    assert "Softmax" not in operators
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_inputs()]
    for arguments in (example, *others):
        want = [tensor.numpy() for tensor in flat(module(*arguments))]
        feeds = {n: t.numpy() for n, t in zip(names, flat(arguments), strict=True)}
        for got, expected in zip(session.run(None, feeds), want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=ATOL)


def forward_case(model: OmniNet):
    def arguments(batch: int, source: int, target: int) -> tuple[Tensor, ...]:
        given = tokens_and_mask(batch, source)
        if model.config.kind == "encoder-decoder":
            return (*given, *tokens_and_mask(batch, target))
        return given

    example = arguments(2, 7, 5)
    others = [arguments(1, 1, 1), arguments(3, 9, 4), arguments(1, 33, 47)]
    return model, example, (TOKENS,) * len(example), others, len(model.config.attention_names())


def decode_case(model: OmniNet):
    crossed = model.config.kind == "encoder-decoder"

    def arguments(batch: int, target: int, past: int, source: int) -> tuple[object, ...]:
        given = (*tokens_and_mask(batch, target, past), cache(model, "self", batch, past))
        if not crossed:
            return given
        _, cross_mask = tokens_and_mask(batch, source)
        return (*given, cache(model, "cross", batch, source), cross_mask)

    layers = [({0: DYNAMIC, 2: DYNAMIC},) * 2] * model.config.decoder_layers
    shapes = (TOKENS, TOKENS, layers) + ((layers, TOKENS) if crossed else ())
    shapes += (None,) * (5 - len(shapes))
    example = arguments(2, 3, 5, 11)
    others = [arguments(1, 5, 0, 3), arguments(3, 1, 7, 1), arguments(2, 3, 65, 9)]
    attentions = sum(name.startswith("decoder") for name in model.config.attention_names())
    return Decode(model).eval(), example, shapes[: len(example)], others, attentions


def slow(value: str) -> object:
    """Kinds and positions whose parts are traced in another test as well."""
    return pytest.param(value, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind", [slow("encoder"), slow("decoder"), "encoder-decoder"])
@pytest.mark.parametrize("positions", [slow(p) if p in OTHERS else p for p in POSITIONS])
@torch.no_grad()
def test_forward(kind, positions, make_model):
    model = make_model(kind=kind, positions=positions, num_layers=1)
    assert_export_is_right(*forward_case(model))


@pytest.mark.parametrize("kind", ["decoder", slow("encoder-decoder")])
@pytest.mark.parametrize("positions", [slow(p) if p in OTHERS else p for p in POSITIONS])
@torch.no_grad()
def test_decode_with_a_past(kind, positions, make_model):
    model = make_model(kind=kind, positions=positions, num_layers=1)
    assert_export_is_right(*decode_case(model))


HEADS = (
    AttentionPattern(),
    AttentionPattern("sliding_window", window=3),
    AttentionPattern("block_sparse", block_size=4, random_blocks=2),
    AttentionPattern("sliding_window", window=9),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        {"kind": "decoder", "attention": (HEADS, AttentionPattern("flash")), "sparse_threshold": 1},
        {"kind": "decoder", "positions": "relative", "attention": HEADS[2], "sparse_threshold": 1},
        {
            "positions": "rotary",
            "rotary_fraction": 0.5,
            "rotary_scaling": "yarn",
            "rotary_factor": 4.0,
            "norm": "rmsnorm",
            "activation": "swiglu",
            "head_pruning": True,
            "head_pruning_threshold": 0.5,
            "tie_embeddings": False,
        },
        {
            "positions": "alibi",
            "norm_order": "post",
            "embedding_norm": True,
            "pruned_heads": {"encoder.1.self": (0, 2), "decoder.0.self": (0,)},
            "gradient_checkpointing": True,
            "attention_dropout": 0.1,
        },
    ],
    ids=["patterns", "blocks", "llama-like", "pruned"],
)
@torch.no_grad()
def test_options(overrides, make_model):
    model = make_model(**overrides)
    assert_export_is_right(*forward_case(model))
    assert_export_is_right(*decode_case(model))


@torch.no_grad()
def test_heads_of_several_patterns(make_model):
    model = make_model(kind="decoder", num_layers=1, attention=(HEADS,), sparse_threshold=1)
    assert_export_is_right(*forward_case(model))


@torch.no_grad()
def test_a_quantizer_that_is_not_set_leaves_no_trace(make_model):
    model = make_model(kind="encoder", num_layers=1)
    example = tokens_and_mask(2, 7)
    before = torch.export.export(model, example, strict=False).graph_module.code
    model.set_quantizer(lambda name, tensor: tensor * 2)
    during = torch.export.export(model, example, strict=False).graph_module.code
    model.set_quantizer(None)
    after = torch.export.export(model, example, strict=False).graph_module.code
    assert before == after != during


@torch.no_grad()
def test_autocast_adds_nothing_to_a_trace(make_model):
    plain, cast = (
        torch.export.export(
            make_model(kind="decoder", autocast=autocast), tokens_and_mask(2, 7), strict=False
        ).graph_module.code
        for autocast in ("none", "bfloat16")
    )
    assert plain == cast


@pytest.mark.slow
def test_seed_is_built_in_seconds_and_runs():
    import time

    start = time.perf_counter()
    model = OmniNet.from_seed(OmniNetConfig.named("seed")).eval()
    assert time.perf_counter() - start < 60  # about 5 s on two cores
    assert 400e6 < sum(p.numel() for p in model.parameters()) < 415e6
    ids = torch.randint(50257, (1, 9))
    with torch.no_grad():
        assert model(ids, None, ids).isfinite().all()
