"""Each metric, against a computation of its own in numpy, and with a fault that it must see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from token_samples import INPUTS, LOGITS

from omnigraph.contract.proportion import lower_proportion
from omnigraph.errors import UsageError
from omnigraph.program import TensorSpec
from omnigraph.quantization.evaluation import Evaluation, default_metrics, evaluation_of, fitting
from omnigraph.quantization.metrics.metric import Example, Loss
from omnigraph.quantization.metrics.registry import METRICS, metric_named

Arrays = Mapping[str, np.ndarray]
ONE = TensorSpec("sentence_embedding", "float32", ("batch", 16), role="embeddings")
EACH = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 16), role="embeddings")
CLASSES = TensorSpec("logits", "float32", ("batch", 5), role="logits")
TAGS = TensorSpec("logits", "float32", ("batch", "sequence", 9), role="logits")


class Recorded:
    """Outputs that are known beforehand, for inputs that are numbered."""

    def __init__(self, spec: TensorSpec, results: Sequence[np.ndarray]) -> None:
        self.spec, self.results = spec, [*results]

    def __call__(self, feeds: Arrays) -> Arrays:
        return {self.spec.name: self.results[int(feeds["number"][0])]}

    def examples(self, data: Sequence[Arrays] | None = None, **feeds: Any) -> Iterator[Example]:
        for number in range(len(self.results)):
            own = {name: arrays[number] for name, arrays in feeds.items()}
            given = {"number": np.array([number]), **own}
            inputs = [spec for spec in INPUTS if spec.name in own]
            more = {} if data is None else data[number]
            yield Example(given, {**given, **more}, inputs, [self.spec])

    def judged(self, metric: str, data: Sequence[Arrays] | None = None, **feeds: Any) -> Evaluation:
        found = evaluation_of(self, self.examples(data, **feeds), [metric_named(metric)])
        assert found is not None and found.metric.name == metric
        return found

    def changed(self, function: Callable[[np.ndarray], np.ndarray]) -> Recorded:
        return Recorded(self.spec, [function(array) for array in self.results])


def draw(spec: TensorSpec, count: int, *shape: int, seed: int = 0) -> Recorded:
    rng = np.random.default_rng(seed)
    size = (*shape, int(spec.shape[-1]))
    return Recorded(spec, [rng.standard_normal(size).astype(np.float32) for _ in range(count)])


def noisy(recorded: Recorded, size: float, seed: int = 1) -> Recorded:
    rng = np.random.default_rng(seed)
    return recorded.changed(lambda a: a + np.float32(size) * rng.standard_normal(a.shape, "f4"))


def share(hits: int, tries: int) -> tuple[float, float]:
    """A share, and Wilson's upper end of it."""
    return hits / tries, 1 - lower_proportion(tries - hits, tries)


def both(loss: Loss) -> tuple[float, float]:
    return loss.relative, loss.upper


# Each against numpy ------------------------------------------------------------------------------


def test_cosine_is_of_each_vector_to_the_model_s():
    model = draw(ONE, 6, 2)
    found = noisy(model, 0.2)
    a, b = np.concatenate(model.results), np.concatenate(found.results)
    unit = [v.astype(float) / np.sqrt((v.astype(float) ** 2).sum(1))[:, None] for v in (a, b)]
    lost = 1 - np.einsum("nc,nc->n", *unit)
    loss = model.judged("cosine").loss(found)
    assert loss.relative == pytest.approx(lost.mean(), rel=1e-6) and loss.rows == 12
    end = lost.mean() + 1.795885 * lost.std(ddof=1) / np.sqrt(12)  # t of the table, 11 degrees
    assert loss.upper == pytest.approx(end, rel=1e-5)
    # A factor changes no direction, and what is turned around is as far as can be.
    assert model.judged("cosine").loss(model.changed(lambda v: v * 3)).upper < 1e-9
    assert model.judged("cosine").loss(model.changed(lambda v: -v)).relative == pytest.approx(2)


def test_cosine_counts_no_hidden_position():
    model = draw(EACH, 4, 2, 5)
    masks = [np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) for _ in range(4)]
    ids = [np.ones((2, 5), np.int64) for _ in range(4)]
    judged = model.judged("cosine", input_ids=ids, attention_mask=masks)

    def turned(rows: slice, positions: slice) -> Callable[[np.ndarray], np.ndarray]:
        def turn(array: np.ndarray) -> np.ndarray:
            array = array.copy()
            array[rows, positions] *= -1
            return array

        return turn

    assert judged.loss(model.changed(turned(slice(0, 1), slice(3, 5)))).upper < 1e-9
    one = judged.loss(model.changed(turned(slice(0, 1), slice(2, 3))))
    assert one.relative == pytest.approx(2 / 8) and one.rows == 8


def test_vectors_of_zeros_are_like_zeros_alone():
    zeros = draw(ONE, 3, 1).changed(np.zeros_like)
    assert zeros.judged("cosine").loss(zeros).upper == 0
    assert zeros.judged("cosine").loss(zeros.changed(lambda v: v + 1)).relative == 1


def neighbours(vectors: np.ndarray) -> list[int]:
    wide = vectors.astype(float)
    found = []
    for place, one in enumerate(wide):
        cosines = [one @ o / np.sqrt((one @ one) * (o @ o)) for o in wide]
        found.append(max((c, -n) for n, c in enumerate(cosines) if n != place)[1] * -1)
    return found


@pytest.mark.parametrize("size", [0.0, 0.1, 0.5])
def test_nearest_neighbours_are_counted(size: float):
    model = draw(ONE, 20, 2)
    found = noisy(model, size)
    pairs = [neighbours(np.concatenate(one.results)) for one in (model, found)]
    hits = sum(a != b for a, b in zip(*pairs, strict=True))
    assert bool(hits) is bool(size)
    assert both(model.judged("nearest-neighbour").loss(found)) == pytest.approx(share(hits, 40))


def test_a_neighbour_that_is_as_near_is_the_same():
    model = draw(ONE, 8, 1)
    twice = Recorded(ONE, [*model.results, *model.results])  # each text is there twice, ...
    three = Recorded(ONE, [*twice.results, *model.results])  # and three times
    rng = np.random.default_rng(3)
    rounded = three.changed(lambda v: v * (1 + 1e-7 * rng.standard_normal(v.shape)))
    assert three.judged("nearest-neighbour").loss(rounded).relative == 0
    assert twice.judged("nearest-neighbour").loss(noisy(twice, 3.0)).relative > 0.5


def greedy(recorded: Recorded) -> np.ndarray:
    return np.stack([array.argmax(-1) for array in recorded.results])


def test_next_tokens_are_counted_where_they_are_shown():
    model = draw(LOGITS, 12, 1, 30)
    found = noisy(model, 0.3)
    masks = [(np.arange(30) < 30 - n)[None].astype(np.int64) for n in range(12)]
    ids = [np.ones((1, 30), np.int64)] * 12
    judged = model.judged("next-token", input_ids=ids, attention_mask=masks)
    shown = np.stack(masks) != 0
    others = (greedy(model) != greedy(found)) & shown
    loss = judged.loss(found)
    assert loss.relative == others.sum() / shown.sum() > 0
    least = share(int(others.sum()), int(shown.sum()))[1]
    assert least <= loss.upper < 2 * least  # tokens of a row may be alike
    # Hidden ones may be any, and NaN: no one reads them.
    hidden = [
        np.where(s[..., None] != 0, a, np.nan) for s, a in zip(masks, model.results, strict=True)
    ]
    assert judged.loss(Recorded(LOGITS, hidden)).relative == 0


def test_accuracy_without_labels_is_the_share_of_other_classes():
    model = draw(CLASSES, 25, 2)
    found = noisy(model, 0.4)
    others = int((greedy(model) != greedy(found)).sum())
    loss = model.judged("accuracy").loss(found)
    assert both(loss) == pytest.approx(share(others, 50)) and others
    assert loss.model is None and loss.rows == 50


def test_accuracy_with_labels_is_a_difference():
    model, rng = draw(CLASSES, 25, 2), np.random.default_rng(5)
    found = noisy(model, 0.6)
    known = greedy(model).copy()
    wrong = rng.random(known.shape) < 0.3
    known[wrong] = (known[wrong] + 1) % 5
    known[:4, 0] = -100
    counted = known >= 0
    right = [((greedy(one) == known) & counted).sum() / counted.sum() for one in (model, found)]
    loss = model.judged("accuracy", [{"labels": row} for row in known]).loss(found)
    assert (loss.model, loss.found) == pytest.approx(right) and loss.rows == 46
    assert loss.relative == pytest.approx(right[0] - right[1]) and loss.relative > 0
    assert loss.relative < loss.upper < share(int((greedy(model) != greedy(found)).sum()), 46)[1]
    # One that is right more often has lost nothing.
    best = Recorded(CLASSES, [np.eye(5, dtype="f4")[row] for row in np.maximum(known, 0)])
    assert model.judged("accuracy", [{"labels": row} for row in known]).loss(best).relative < 0


def test_accuracy_of_positions_needs_labels():
    model = draw(TAGS, 8, 2, 6)
    ids = [np.ones((2, 6), np.int64)] * 8
    (known, found) = greedy(model), noisy(model, 0.5)
    loss = model.judged("accuracy", [{"labels": row} for row in known], input_ids=ids).loss(found)
    assert loss.relative == pytest.approx((known != greedy(found)).mean()) and loss.model == 1
    examples = model.examples(input_ids=ids)
    assert evaluation_of(model, examples, [metric_named("accuracy")]) is None


def test_perplexity_is_of_labels():
    model = draw(TAGS, 8, 1, 6)
    found, known = noisy(model, 0.5), greedy(model)
    known[2, 0, 3:] = -1

    def perplexity(one: Recorded) -> float:
        logits = np.stack(one.results).astype(float)[known >= 0]
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return np.exp(-np.log(shares[np.arange(len(shares)), known[known >= 0]]).mean())

    ids = [np.ones((1, 6), np.int64)] * 8
    loss = model.judged("perplexity", [{"labels": row} for row in known], input_ids=ids).loss(found)
    assert (loss.model, loss.found) == pytest.approx((perplexity(model), perplexity(found)))
    assert loss.relative == pytest.approx(perplexity(found) / perplexity(model) - 1)


# Faults ------------------------------------------------------------------------------------------

IDS = [np.arange(n, n + 12)[None] % 9 for n in range(40)]


def _following(ids: np.ndarray) -> np.ndarray:
    return np.eye(9, dtype=np.float32)[np.roll(ids, -1, axis=1)]


def case(metric: str) -> tuple[Recorded, Evaluation]:
    """A model of forty samples that a metric fits."""
    if metric in ("perplexity", "next-token"):
        noise = draw(LOGITS, 40, 1, 12).results  # and above it, the token that follows
        model = Recorded(LOGITS, [a + 4 * _following(i) for a, i in zip(noise, IDS, strict=True)])
        return model, model.judged(metric, input_ids=IDS)
    model = draw(CLASSES if metric == "accuracy" else ONE, 40, 1)
    return model, model.judged(metric)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_sees_a_planted_fault(metric: str):
    model, judged = case(metric)
    same, slight, bad = (judged.loss(one) for one in (model, noisy(model, 0.3), noisy(model, 2.0)))
    assert same.relative == pytest.approx(0, abs=1e-12)
    assert same.upper == pytest.approx(judged.least, abs=1e-9)
    assert slight.relative < bad.relative and slight.upper < bad.upper
    assert bad.relative > 0.1 and bad.upper >= bad.relative
    # One sample of forty that is wholly wrong is seen.
    broken = Recorded(model.spec, [-3 * model.results[0], *model.results[1:]])
    assert judged.loss(broken).upper > same.upper
    # So are outputs that stand at the place of another sample.
    moved = Recorded(model.spec, model.results[1:] + model.results[:1])
    assert judged.loss(moved).upper > 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_no_number_is_beyond_every_bound(metric: str):
    model, judged = case(metric)
    one = [np.full_like(model.results[0], np.nan), *model.results[1:]]
    assert not judged.loss(Recorded(model.spec, one)).upper < np.inf


@pytest.mark.parametrize("metric", METRICS)
def test_layers_are_ordered_by_what_is_never_alike(metric: str):
    model, judged = case(metric)
    found = [judged.ranking(noisy(model, size), 20).relative for size in (1e-4, 1e-2, 1e-1)]
    assert found[0] != found[1] and abs(found[1]) < abs(found[2])
    named = judged.metric.ranked_by or metric
    assert named.startswith(judged.ranking(model, 20).metric)


@pytest.mark.parametrize("metric", METRICS)
def test_one_sample_says_nothing_of_others(metric: str):
    model, _ = case(metric)
    one = Recorded(model.spec, model.results[:1])
    feeds: dict[str, Any] = {"input_ids": IDS} if model.spec is LOGITS else {}
    if metric != "nearest-neighbour":
        assert one.judged(metric, **feeds).loss(one).upper == np.inf
    assert one.judged(metric, **feeds).rows < one.judged(metric, **feeds).metric.least_rows


# What fits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "shape", "default", "fits"),
    [
        (LOGITS, (1, 12), "perplexity", {"perplexity", "next-token"}),
        (CLASSES, (2,), "agreement", {"accuracy"}),
        (ONE, (2,), "cosine", {"cosine", "nearest-neighbour"}),
        (EACH, (2, 12), "agreement", {"cosine"}),
        (TensorSpec("y", "float32", ("batch", 4)), (2,), "agreement",
         {"cosine", "nearest-neighbour", "accuracy"}),
        (TensorSpec("y", "float32", ("batch", 1)), (2,), "agreement", set()),
        (TensorSpec("logits", "float32", ("batch", 1), role="logits"), (2,), "agreement", set()),
    ],
)  # fmt: skip
def test_what_a_program_gives_decides(spec: TensorSpec, shape, default: str, fits: set[str]):
    model = draw(spec, 4, *shape)
    ids: dict[str, Any] = {"input_ids": IDS} if spec is LOGITS else {}
    found = evaluation_of(model, model.examples(**ids), default_metrics([spec]))
    assert found is not None and found.metric.name == default
    assert {*fitting(model, model.examples(**ids))} == {*fits, "agreement"}


def test_every_metric_says_what_it_is():
    for name in METRICS:
        metric = metric_named(name)
        assert metric.name == name and metric.expects and metric.__doc__
    with pytest.raises(UsageError, match="no metric 'cosin'") as error:
        metric_named("cosin")
    assert "did you mean 'cosine'?" in str(error.value)
