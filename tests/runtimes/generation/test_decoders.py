"""Decoders: cached equals uncached, pieces equal the whole; reordered, truncated and grouped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import omnigraph
from omnigraph.errors import InputError, UnsupportedError
from omnigraph.frontends.module import program_from_module
from omnigraph.program import Dim, Program
from omnigraph.runtimes.generation.grouped_decoder import GroupedDecoder
from omnigraph.runtimes.generation.program_decoder import ProgramDecoder
from omnigraph.runtimes.generation.step_program import StepProgram

VOCABULARY, WIDTH = 13, 8


def decoder_of(pair, rows: int) -> ProgramDecoder:
    return ProgramDecoder(pair.session, StepProgram.of(pair.session.artifact), rows)


def whole_scores(pair, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """What transformers scores after the last token, without a cache."""
    shown = torch.tensor(np.ones_like(ids) if mask is None else mask)
    positions = (shown.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        found = pair.model(
            input_ids=torch.tensor(ids), attention_mask=shown, position_ids=positions
        )
    return found.logits[:, -1].numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(pieces=st.lists(st.integers(1, 7), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_pieces_score_as_the_whole(pair, pieces: list[int], seed: int):
    ids = np.random.default_rng(seed).integers(4, 61, (2, sum(pieces)))
    decoder, start = decoder_of(pair, 2), 0
    for piece in pieces:
        scores = decoder.feed(ids[:, start : start + piece])
        start += piece
        assert decoder.length == start
        close(scores, whole_scores(pair, ids[:, :start]))
    assert scores.dtype == np.float32


def test_rows_are_reordered_and_truncated(pair, prompts):
    decoder = decoder_of(pair, 3)
    decoder.feed(prompts)
    decoder.reorder(np.array([2, 0, 0, 1]))
    decoder.truncate(4)
    assert (decoder.rows, decoder.length) == (4, 4)
    more = np.array([[5], [6], [7], [8]])
    wanted = np.concatenate([prompts[[2, 0, 0, 1], :4], more], axis=1)
    close(decoder.feed(more), whole_scores(pair, wanted))
    decoder.truncate(0)
    close(decoder.feed(more), whole_scores(pair, more))


@pytest.mark.parametrize("chunk", [1, 2, 6])
def test_rows_of_unequal_prompts_run_apart(pair, prompts, mask, chunk: int):
    padding = mask.argmax(axis=1)
    decoder = GroupedDecoder(lambda rows: decoder_of(pair, rows), padding)
    for start in range(0, 6, chunk):
        piece = slice(start, start + chunk)
        scores = decoder.feed(prompts[:, piece], mask[:, piece] == 1)
    ids, shown = prompts, mask
    close(scores, whole_scores(pair, ids, shown))
    decoder.reorder(rows := np.array([2, 0, 2, 1, 1]))
    ids, shown = ids[rows], shown[rows]
    for step in range(2):
        tokens = np.full((5, 1), 5 + step)
        ids, shown = np.hstack([ids, tokens]), np.hstack([shown, np.ones_like(tokens)])
        close(decoder.feed(tokens), whole_scores(pair, ids, shown))
    decoder.reorder(rows := np.array([3, 4]))  # a group is left
    decoder.truncate(7)
    ids, shown = ids[rows, :7], shown[rows, :7]
    tokens = np.full((2, 1), 9)
    ids, shown = np.hstack([ids, tokens]), np.hstack([shown, np.ones_like(tokens)])
    close(decoder.feed(tokens), whole_scores(pair, ids, shown))
    assert (decoder.rows, decoder.length) == (2, 8)


def test_a_full_decoder_takes_no_more(pair):
    decoder = decoder_of(pair, 1)
    if decoder.capacity is None:  # rotary positions end nowhere
        pytest.skip("no bound")
    assert decoder.capacity == 96
    decoder.feed(np.full((1, 95), 5))
    decoder.feed(np.full((1, 1), 5))
    with pytest.raises(InputError, match=r"expected at most 96 positions.*\nhint: "):
        decoder.feed(np.full((1, 1), 5))


# Programs of other shapes ------------------------------------------------------------------------


class Attending(nn.Module):
    """One causal attention with a past, with or without a mask and positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.mix, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(
        self,
        input_ids: Tensor,
        past_0_key: Tensor,
        past_0_value: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        embedded = self.table(input_ids)
        if position_ids is not None:
            embedded = embedded + self.places(position_ids)
        query, key, value = self.mix(embedded).unsqueeze(1).chunk(3, dim=-1)
        key, value = torch.cat([past_0_key, key], 2), torch.cat([past_0_value, value], 2)
        now, total = query.shape[2], key.shape[2]
        seen = torch.ones(now, total, dtype=torch.bool).tril(total - now)
        if attention_mask is not None:
            seen = seen & attention_mask.bool()[:, None, None, :]
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, torch.where(seen, 0.0, -1e9)
        )
        logits = self.head(attended.squeeze(1))
        return {"logits": logits, "present_0_key": key, "present_0_value": value}


def attending(*more: str, least: int = 0) -> Program:
    """A step of `Attending` with some of its inputs."""
    past = torch.zeros(2, 1, 3, WIDTH)
    inputs = {"input_ids": torch.ones(2, 4, dtype=torch.int64)}
    inputs |= {"past_0_key": past, "past_0_value": past.clone()}
    axes = {"input_ids": {0: "batch", 1: "sequence"}}
    axes |= {name: {0: "batch", 2: "past"} for name in ("past_0_key", "past_0_value")}
    if "attention_mask" in more:
        inputs["attention_mask"] = torch.ones(2, 7, dtype=torch.int64)
        axes["attention_mask"] = {0: "batch", 1: "past + sequence"}
    if "position_ids" in more:
        inputs["position_ids"] = torch.ones(2, 4, dtype=torch.int64)
        axes["position_ids"] = {0: "batch", 1: "sequence"}
    program = program_from_module(Attending().eval(), inputs, name="decode", dynamic=axes)
    specs = tuple(
        replace(spec, default={"past": 0, "mask": 1}.get(spec.role)) for spec in program.inputs
    )
    state = tuple((f"past_0_{part}", f"present_0_{part}") for part in ("key", "value"))
    return replace(
        program, inputs=specs, state=state, dims={**program.dims, "past": Dim(least, 40)}
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[..., Path]:
    made: dict[object, Path] = {}

    def export(*more: str, least: int = 0) -> Path:
        key = (more, least)
        if key not in made:
            out = tmp_path_factory.mktemp("attending") / "net.omni"
            omnigraph.export([attending(*more, least=least)], "onnx", out=out)
            made[key] = out
        return made[key]

    return export


def greedy(ids: list[int], count: int, positions: bool) -> list[int]:
    """Greedy tokens of `Attending`, each from the whole text."""
    module, ids = Attending().eval(), list(ids)
    past = torch.zeros(1, 1, 0, WIDTH)
    for _ in range(count):
        places = torch.arange(len(ids))[None] if positions else None
        with torch.no_grad():
            found = module(torch.tensor([ids]), past, past, None, places)
        ids.append(int(found["logits"][0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize(
    "more", [(), ("attention_mask",), ("position_ids",), ("attention_mask", "position_ids")]
)
def test_prompts_of_unequal_lengths_are_right_whatever_a_program_has(exported, more):
    prompts = [[1, 2, 3, 4, 5], [6], [7, 8, 9], [10, 11, 12]]
    with omnigraph.load(exported(*more)) as net:
        found = net.generate(prompts, max_new_tokens=6)
        program = StepProgram.of(net.artifact)
        assert program.pads_left == ("attention_mask" in more)
        assert program.capacity == 41
    for row, prompt in zip(found.new, prompts, strict=True):
        assert row.tolist() == greedy(prompt, 6, "position_ids" in more)


@pytest.mark.parametrize("most", [1, 2])
def test_a_prompt_is_read_in_calls_of_as_many_tokens_as_a_program_takes(tmp_path, most: int):
    program = attending("attention_mask").with_dims({"sequence": Dim(1, most)})
    omnigraph.export([program], "onnx", out=tmp_path / "net.omni")
    with omnigraph.load(tmp_path / "net.omni") as net:
        assert StepProgram.of(net.artifact).most_tokens == most
        found = net.generate([[1, 2, 3, 4, 5], [6]], max_new_tokens=6).new
    assert [row.tolist() for row in found] == [
        greedy([1, 2, 3, 4, 5], 6, positions=False),
        greedy([6], 6, positions=False),
    ]


def test_a_past_that_cannot_be_empty_cannot_begin(exported):
    with (
        omnigraph.load(exported(least=1)) as net,
        pytest.raises(UnsupportedError, match="past cannot be empty"),
    ):
        net.generate([1, 2])


def test_an_artifact_without_a_past_cannot_generate(tmp_path):
    module = nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY))
    program = program_from_module(
        module.eval(), {"input": torch.ones(2, 4, dtype=torch.int64)}, dynamic={"input": {1: "t"}}
    )
    omnigraph.export([program], "onnx", out=tmp_path / "net.omni")
    with (
        omnigraph.load(tmp_path / "net.omni") as net,
        pytest.raises(UnsupportedError, match=r"no program of it takes a past.*\nhint: export"),
    ):
        net.generate([1, 2])


def test_a_program_that_is_asked_for_must_take_a_past(tiny_artifacts):
    with omnigraph.load(tiny_artifacts["onnx"]) as net:
        with pytest.raises(UnsupportedError, match="Program 'forward' of"):
            net.generate([1, 2], program="forward")
        assert len(net.generate([1, 2], program="decode", max_new_tokens=2).new[0]) == 2


def test_a_decoder_of_omninet_generates_the_same_on_each_target(tiny_artifacts):
    found = []
    for target in ("onnx", "openvino"):
        with omnigraph.load(tiny_artifacts[target], threads=1) as net:
            for prompts in ([[5, 6, 7, 8], [9]], [[9]]):
                found.append(net.generate(prompts, max_new_tokens=8).new[-1].tolist())
    assert found.count(found[0]) == 4
