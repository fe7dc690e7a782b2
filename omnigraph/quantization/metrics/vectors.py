"""Metrics of embeddings: the direction of vectors, and which of them is next to which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from omnigraph.program import TensorSpec, mask_of
from omnigraph.quantization.confidence import upper_ratio, upper_share
from omnigraph.quantization.metrics.metric import Example, Feeds, Loss, Metric, rows_of

#: The role of vectors of the model's width.
_EMBEDDINGS = "embeddings"
#: Cosines that differ by less are alike: fp32 rounds them so.
_ALIKE = 1e-6
#: Vectors whose cosines to all others are computed at a time.
_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Vectors:
    """The model's vectors for one example.

    Args:
        arrays: by the output's name, [B, …, C].
        shown: by the output's name, [B, …] bool, the vectors that no mask hides.
        rows: B.
    """

    arrays: Feeds
    shown: Feeds
    rows: int


class Cosine(Metric[Vectors]):
    """1 minus the mean cosine of the program's vectors to the model's.

    A vector for each position counts where no mask hides it. The worst output counts. The upper
    end is that of a ratio of sums over rows (`omnigraph.quantization.confidence.upper_ratio`).
    """

    name = "cosine"
    expects = "vectors: an output of floats [B, C] or [B, T, C] that is no logits"

    def known(self, example: Example, results: Feeds) -> Vectors | None:
        """The vectors of a program, where it gives any."""
        return _vectors(example, results, least_axes=2)

    def loss(self, known: Sequence[Vectors], results: Iterable[Feeds]) -> Loss:
        """1 minus the mean cosine; infinite where a vector has NaN."""
        sums: dict[str, list[np.ndarray]] = {}
        counts: dict[str, list[np.ndarray]] = {}
        for one, found in zip(known, results, strict=True):
            for name, array in one.arrays.items():
                shown = one.shown[name].reshape(one.rows, -1)
                lost = 1 - cosines(array, found[name]).reshape(one.rows, -1)
                sums.setdefault(name, []).append(np.where(shown, lost, 0.0).sum(axis=1))
                counts.setdefault(name, []).append(shown.sum(axis=1))
        losses = []
        for name in sums:
            parts, wholes = np.concatenate(sums[name]), np.concatenate(counts[name])
            losses.append(self._loss(parts[wholes > 0], wholes[wholes > 0]))
        worst = max(losses, key=lambda loss: loss.relative)
        # The upper end is the largest of the outputs': that of the worst output is among them.
        upper = max(loss.upper for loss in losses)
        return Loss(self.name, worst.relative, upper, worst.rows)

    def _loss(self, parts: np.ndarray, wholes: np.ndarray) -> Loss:
        if not np.isfinite(parts.sum()):
            return Loss(self.name, math.inf, math.inf, len(parts))
        relative = float(parts.sum() / wholes.sum())
        return Loss(self.name, relative, upper_ratio(parts, wholes), len(parts))


class NearestNeighbour(Metric[Vectors]):
    """The share of samples whose nearest neighbour among the others is another one.

    The neighbour is that of the largest cosine: of the model's vectors among themselves, and of the
    program's among themselves. One that is as near for the model, up to the rounding of fp32, is no
    other one: the data may hold a text twice. The worst output counts.

    The upper end is that of a share (`omnigraph.quantization.confidence.upper_share`), as if
    samples were independent. They share their neighbours, so it is an approximation.
    """

    name = "nearest-neighbour"
    expects = "one vector for each sample: an output of floats [B, C] that is no logits"
    least_rows = 3  # of two samples, each is the other's
    ranked_by = Cosine.name

    def known(self, example: Example, results: Feeds) -> Vectors | None:
        """The vectors of a program, where it gives one for each sample."""
        return _vectors(example, results, least_axes=2, most_axes=2)

    def loss(self, known: Sequence[Vectors], results: Iterable[Feeds]) -> Loss:
        """The share of other neighbours; infinite where a vector has NaN."""
        given: dict[str, list[np.ndarray]] = {name: [] for name in known[0].arrays}
        for found in results:
            for name, arrays in given.items():
                arrays.append(found[name])
        losses = []
        for name, arrays in given.items():
            vectors = np.concatenate(arrays)
            if not np.isfinite(vectors).all():
                return Loss(self.name, math.inf, math.inf, len(vectors))
            others = other_neighbours(np.concatenate([one.arrays[name] for one in known]), vectors)
            upper = upper_share(others, np.ones(len(others)))
            losses.append(Loss(self.name, float(others.mean()), upper, len(others)))
        return max(losses, key=lambda loss: loss.relative)

    def ranking(self, known: Sequence[Vectors], results: Iterable[Feeds]) -> Loss:
        """By cosine."""
        return Cosine().loss(known, results)

    def least(self, known: Sequence[Vectors]) -> float:
        """What a share of none leaves open."""
        return upper_share(np.zeros(rows_of(known)), np.ones(rows_of(known)))


def one_vector_a_sample(outputs: Sequence[TensorSpec]) -> bool:
    """Whether a program is an embedding: it gives embeddings alone, one of them [B, C]."""
    known = all(spec.role == _EMBEDDINGS for spec in outputs)
    return known and bool(_of_vectors(outputs, 2, 2))


def _of_vectors(outputs: Sequence[TensorSpec], least: int, most: int) -> list[TensorSpec]:
    """The outputs that are vectors of so many axes: embeddings, or floats of no known role."""
    found = [
        spec
        for spec in outputs
        if spec.role in (_EMBEDDINGS, "")
        and least <= len(spec.shape) <= most
        and spec.shape[-1] != 1
        and np.dtype(spec.dtype).kind not in "iub"
    ]
    known = [spec for spec in found if spec.role]
    return known or found


def _vectors(
    example: Example, results: Feeds, *, least_axes: int, most_axes: int = 8
) -> Vectors | None:
    specs = _of_vectors(example.outputs, least_axes, most_axes)
    if not specs:
        return None
    arrays = {spec.name: results[spec.name] for spec in specs}
    rows = {len(array) for array in arrays.values()}
    if len(rows) > 1:
        return None  # an output has no batch axis
    return Vectors(arrays, {spec.name: _shown(spec, example, results) for spec in specs}, *rows)


def _shown(spec: TensorSpec, example: Example, results: Feeds) -> np.ndarray:
    """[B, …] bool, the vectors of an output that no mask hides."""
    shape = results[spec.name].shape[:-1]
    mask = mask_of(spec, example.inputs) if len(shape) > 1 else None
    if mask is None or mask.name not in example.feeds:
        return np.ones(shape, bool)
    shown = example.feeds[mask.name][:, -shape[1] :] != 0
    return np.broadcast_to(shown.reshape(shown.shape + (1,) * (len(shape) - 2)), shape)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[…], the cosine of each vector [… , C] to the one in its place; computed in float64.

    Two vectors of zeros are alike (1), and one of zeros is like no other (0).
    """
    left, right = first.astype(np.float64), second.astype(np.float64)
    sizes = np.linalg.norm(left, axis=-1), np.linalg.norm(right, axis=-1)
    product = sizes[0] * sizes[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (left * right).sum(axis=-1) / product
    found = np.where(product == 0, np.where(sizes[0] == sizes[1], 1.0, 0.0), found)
    return np.minimum(found, 1.0)


def other_neighbours(model: np.ndarray, found: np.ndarray) -> np.ndarray:
    """[N] bool, the samples whose nearest neighbour is another one.

    Args:
        model: [N, C], the model's vectors.
        found: [N, C], the program's.
    """
    changed = []
    pairs = zip(_similarities(model), _similarities(found), strict=True)
    for own, given in pairs:
        chosen = np.take_along_axis(own, given.argmax(axis=1)[:, None], axis=1)[:, 0]
        changed.append(chosen < own.max(axis=1) - _ALIKE)
    return np.concatenate(changed)


def _similarities(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """[n, N], the cosines of some vectors to all, and -inf to themselves."""
    wide = vectors.astype(np.float64)
    sizes = np.linalg.norm(wide, axis=1, keepdims=True)
    wide /= np.where(sizes == 0, 1.0, sizes)
    for start in range(0, len(wide), _AT_ONCE):
        part = wide[start : start + _AT_ONCE]
        found = part @ wide.T
        found[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        yield found
