"""Finds the sizes at which a model runs, by running it: least, largest, multiples and ties."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from omnigraph.program import Dim

Sizes = dict[str, int]
#: By how much a size grows, to see whether others than it run, and which multiples.
_STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 128)
#: Sizes to start from, where small ones do not run: those of images, waves and windows.
_STARTS = (8, 16, 32, 48, 64, 96, 128, 224, 256, 320, 512, 640, 1024, 2048, 4096, 8192, 16384)
#: Sizes are doubled up to this, and to a few times the least: the contract tries no larger ones.
_ENOUGH = 128


@dataclass(frozen=True)
class FoundSizes:
    """Where a model runs.

    Args:
        example: a size for each dimension, at which it runs.
        ranges: the range of each dimension; one size where no other was found.
        ties: dimensions that must equal another, and that other.
    """

    example: Sizes
    ranges: Mapping[str, Dim]
    ties: Mapping[str, str]

    @property
    def endless(self) -> int:
        """How many dimensions have no largest size."""
        return sum(found.max is None for found in self.ranges.values())


@dataclass
class SizeSearch:
    """A search for the sizes at which a model runs.

    Args:
        names: the dimensions.
        groups: for each axis, the dimensions of inputs on it: they may be one under several names.
        runs: whether the model runs at these sizes.
        affordable: whether a run at these sizes is short enough to be tried.
        limits: sizes of the model's tables, which may be the largest that a dimension can have.
        kept: dimensions whose size is given, and is not to be changed to find a start.
    """

    names: Sequence[str]
    groups: Sequence[Sequence[str]]
    runs: Callable[[Sizes], bool]
    affordable: Callable[[Sizes], bool]
    limits: Sequence[int] = ()
    kept: frozenset[str] = frozenset()
    _known: dict[tuple[int, ...], bool] = field(default_factory=dict)

    def start(self, first: Mapping[str, int]) -> Sizes | None:
        """Sizes at which the model runs: the first ones, or others near them; None if none do."""
        return next(self._working(self._starts(dict(first))), None)

    def find(self, start: Mapping[str, int]) -> FoundSizes:
        """The ranges around a start; around a larger one, where more dimensions have no end there.

        A model may run at a few small sizes by chance, where all that it adds up has one element.
        """
        best = self.around(start)
        ends = {name: found.max for name, found in best.ranges.items() if found.max is not None}
        grown = (
            {**start, **dict.fromkeys(set(ends) - {*self.groups[0]} - self.kept, size)}
            for size in _STARTS
        )
        for sizes in self._working(grown) if ends else ():
            if all(size <= (ends.get(name) or size) for name, size in sizes.items()):
                continue
            if (other := self.around(sizes)).endless > best.endless:
                return other
        return best

    def _working(self, starts: Iterable[Sizes]) -> Iterator[Sizes]:
        """Those at which the model runs."""
        for sizes in starts:
            if self.affordable(sizes) and self._runs(sizes):
                yield sizes

    def around(self, example: Mapping[str, int]) -> FoundSizes:
        """The ranges around sizes at which the model runs, each dimension varied by itself."""
        example = dict(example)
        ties: dict[str, str] = {}
        multiples = {name: self._multiple(example, (name,)) for name in self.names}
        for name in self.names:
            if multiples[name] is None and name not in ties:
                for other in self._tied(example, name, multiples, ties):
                    ties[other] = name
                multiples[name] = self._multiple(example, self._with(name, ties))
        ranges = {}
        least: Sizes = dict(example)
        for name in self.names:
            if name in ties:
                continue
            step, group = multiples[name], self._with(name, ties)
            if step is None:
                ranges[name] = Dim(example[name], example[name])
                continue
            low = self._least(example, group, step)
            least |= dict.fromkeys(group, low)
            ranges[name] = Dim(low, None, step)
        if not self._runs(least):  # each ran alone, but not all together
            ranges = {n: Dim(example[n], d.max, d.multiple) for n, d in ranges.items()}
            least = dict(example)
        for name, found in ranges.items():
            if found.max is None:
                most = self._most(least, example[name], self._with(name, ties), found)
                ranges[name] = Dim(found.min, most, found.multiple)
        return FoundSizes(example, ranges, ties)

    # Starts ---------------------------------------------------------------------------------------

    def _starts(self, first: Sizes) -> Iterator[Sizes]:
        """The first sizes, the same with ties and a batch of one, and with all else grown."""
        batches = self.groups[0]
        firsts = (first, {**first, **dict.fromkeys(batches, 1)})
        for sizes in firsts:
            yield from (tied for tied, _ in self._tied_starts(sizes))
        for size in _STARTS:
            for sizes in firsts:
                for tied, together in self._tied_starts(sizes):
                    # What is as large as the batch is one as well.
                    few = {*batches, *(together if set(together) & set(batches) else ())}
                    others = [name for name in self.names if name not in few | self.kept]
                    yield {**tied, **dict.fromkeys(others, size)}
                    yield {**tied, **{name: size + i for i, name in enumerate(others)}}
                    for name in others if len(others) > 1 else ():
                        yield {**tied, name: size}

    def _tied_starts(self, sizes: Sizes) -> Iterator[tuple[Sizes, Sequence[str]]]:
        """Sizes as they are, and with dimensions made equal: two, all of an axis, or of each."""
        yield sizes, ()
        pairs = list(itertools.combinations(self.names, 2))
        for group in (*pairs, *(group for group in self.groups if len(group) > 1)):
            leader = next((name for name in group if name in self.kept), group[0])
            yield {**sizes, **dict.fromkeys(set(group) - self.kept, sizes[leader])}, group
        tied = dict(sizes)
        for group in filter(None, self.groups):
            tied |= dict.fromkeys(group, tied[group[0]])
        yield {**tied, **{name: sizes[name] for name in self.kept}}, ()

    # Ranges ---------------------------------------------------------------------------------------

    def _multiple(self, example: Sizes, group: Iterable[str]) -> int | None:
        """The least step by which dimensions can change together; None where they cannot."""
        group = tuple(group)
        size = example[group[0]]
        steps = [step for step in _STEPS if size % step == 0]
        # Three sizes in a row; smaller ones alone may run since all are rounded up to one size.
        for in_a_row in (((1, 2), (1, -1)), ((-1, -2),)):
            for step, pair in itertools.product(steps, in_a_row):
                if all(self._grown(example, group, count * step) for count in pair):
                    return step
        return None

    def _grown(self, example: Sizes, group: Iterable[str], step: int) -> bool:
        sizes = {**example, **{name: example[name] + step for name in group}}
        return min(sizes.values()) > 0 and self.affordable(sizes) and self._runs(sizes)

    def _tied(
        self,
        example: Sizes,
        name: str,
        multiples: Mapping[str, int | None],
        ties: Mapping[str, str],
    ) -> list[str]:
        """The dimensions that must be as large as one that does not run at another size."""
        alike = [
            other
            for other in self.names
            if other != name
            and example[other] == example[name]
            and multiples[other] is None
            and other not in ties
        ]
        for others in (*([other] for other in alike), alike):
            if others and self._multiple(example, (name, *others)) is not None:
                return others
        return []

    def _with(self, name: str, ties: Mapping[str, str]) -> tuple[str, ...]:
        return (name, *(other for other, leader in ties.items() if leader == name))

    def _least(self, example: Sizes, group: Sequence[str], step: int) -> int:
        """The smallest multiple at which the model runs; between it and the example, all do."""

        def runs(count: int) -> bool:
            return self._runs({**example, **dict.fromkeys(group, count * step)})

        return step if runs(1) else self._between(example[group[0]] // step, 1, runs) * step

    def _most(self, least: Sizes, example: int, group: Sequence[str], found: Dim) -> int | None:
        """The largest multiple at which the model runs, or None where no end was found."""
        step = found.multiple

        def sizes(count: int) -> Sizes:
            return {**least, **dict.fromkeys(group, count * step)}

        works = example // step
        tables = [limit // step for limit in self.limits]
        enough = (_ENOUGH + 4 * found.min) // step
        doubled = [count for power in range(1, 12) if (count := works << power) <= 2 * enough]
        for count in sorted({*doubled, *(table + 1 for table in tables)}):
            if count <= works or not self.affordable(sizes(count)):
                continue
            if self._runs(sizes(count)):
                works = count
                continue
            if count - 1 in tables and self._runs(sizes(count - 1)):
                return (count - 1) * step
            return self._between(works, count, lambda n: self._runs(sizes(n))) * step
        return None

    def _between(self, works: int, fails: int, runs: Callable[[int], bool]) -> int:
        """The last count that works, between one that does and one, on either side, that fails."""
        while abs(fails - works) > 1:
            tried = (works + fails) // 2
            works, fails = (tried, fails) if runs(tried) else (works, tried)
        return works

    def _runs(self, sizes: Sizes) -> bool:
        key = self._key(sizes)
        if key not in self._known:
            self._known[key] = self.runs(sizes)
        return self._known[key]

    def _key(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(sizes[name] for name in self.names)
