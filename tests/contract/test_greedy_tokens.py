"""Greedy tokens: which count, which agree, and that nothing is run twice."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np

from omnigraph.contract.greedy_tokens import GreedyTokens, TokenCount, agreeing, greedy_reference
from omnigraph.contract.reference import Reference
from omnigraph.program import Case, TensorSpec

SEQUENCE = ("batch", "sequence")
INPUTS = (
    TensorSpec("input_ids", "int64", SEQUENCE, role="tokens"),
    TensorSpec("attention_mask", "int64", ("batch", "past + sequence"), 1, role="mask"),
)
LOGITS = TensorSpec("scores", "float32", (*SEQUENCE, 7), role="logits")
MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 0]])  # a past of one position
RNG = np.random.default_rng(0)


def reference() -> Reference:
    ids = RNG.integers(0, 7, (2, 3))
    logits = RNG.standard_normal((2, 3, 7)).astype(np.float32)
    return Reference(Case("a", {}), {"input_ids": ids, "attention_mask": MASK}, {"scores": logits})


def test_hidden_positions_do_not_count():
    given = reference()
    found = greedy_reference(given, INPUTS, [LOGITS])
    assert found is not None and found.feeds is given.feeds
    best = given.outputs["scores"].argmax(2)
    assert found.outputs["scores"].tolist() == [[-1, *best[0, 1:]], [*best[1, :2], -1]]
    assert agreeing(given.outputs["scores"], found.outputs["scores"]) == (4, 4)


def test_what_is_no_language_model_has_none():
    given = reference()
    assert greedy_reference(given, INPUTS[1:], [LOGITS]) is None
    assert greedy_reference(given, INPUTS, [TensorSpec("scores", "float32", (2, 3, 7))]) is None
    flat = Reference(given.case, given.feeds, {"scores": given.outputs["scores"][:, 0]})
    assert greedy_reference(flat, INPUTS, [LOGITS]) is None


def test_flipped_tokens_and_those_that_are_no_number_do_not_agree():
    logits = RNG.standard_normal((2, 3, 7))
    tokens = logits.argmax(2)
    flipped = logits.copy()
    flipped[0, 1, tokens[0, 1]] = -9
    assert agreeing(flipped, tokens) == (5, 6)
    flipped[1, 2, tokens[1, 2]] = np.nan  # argmax would take it for the largest
    assert agreeing(flipped, tokens) == (4, 6)


def test_where_the_last_token_alone_is_computed_it_alone_counts():
    logits = RNG.standard_normal((2, 3, 7))
    tokens = logits.argmax(2)
    tokens[1, 2] = -1
    last = np.stack([logits[0, 2], logits[1, 1]])[:, None]
    assert agreeing(last, tokens) == (2, 2)
    assert agreeing(np.roll(last, 1, axis=2), tokens) == (0, 2)


def test_what_the_contract_ran_is_not_run_again():
    first, other = reference(), reference()
    expected = [greedy_reference(r, INPUTS, [LOGITS]) for r in (first, other)]
    ran: list[int] = []

    @contextmanager
    def opened(artifact, program):
        def run(feeds):
            ran.append(id(feeds))
            wrong = first.outputs["scores"] if feeds is first.feeds else -other.outputs["scores"]
            return {"scores": wrong}

        yield run

    count = TokenCount({"decode": GreedyTokens(expected, "text")}, "target onnx")
    with count.counting(opened)(None, "decode") as run:
        run(first.feeds)
        run(dict(first.feeds))
    assert ran == [id(first.feeds), ran[1], id(other.feeds)]
    (found,) = count.found
    assert (found.program, found.same, found.total) == ("decode", 4, 8)
    assert 0.2 < found.lower < 0.5
    assert str(found).startswith("greedy tokens of decode: 4 of 8 are torch's (50.00%, at least 2")
    with count.counting(opened)(None, "encode") as run:
        run(first.feeds)
    assert len(count.found) == 1
