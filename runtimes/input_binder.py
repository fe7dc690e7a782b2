"""Named inputs as the arrays of a run: checked, in order, with defaults filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, NoReturn

import numpy as np

from omnigraph.errors import InputError
from omnigraph.program import Dim, TensorSpec, dim_terms
from omnigraph.runtimes.foreign_arrays import as_numpy
from omnigraph.runtimes.value_ranges import Fits, fits, outside

_dtype_of, _shape_of = attrgetter("dtype"), attrgetter("shape")
#: Plans are kept for at most this many sets of names, in the order given.
_MOST_PLANS = 64
#: The most inputs whose shapes an error shows.
_MOST_SHOWN = 4
_NOTHING: Mapping[str, str] = {}


class InputBinder:
    """Checks named inputs against their specs and puts them in order. Made once, called per run.

    A plan that follows from the given names is made once for each set of names, and inputs of one
    declared shape are compared together: a run spends a fraction of a microsecond on each input,
    and one pass over its memory where its values have a range. Safe to call from several threads.

    Args:
        ranges: of the dimensions, by name: the least size, and the greatest or None.
        state: inputs of the state; those that have a default are given together or not at all.
        narrowed: by dtype, the dtype that the runtime computes it in, where that holds less.
    """

    def __init__(
        self,
        program: str,
        specs: Sequence[TensorSpec],
        ranges: Mapping[str, Sequence[int | None]],
        *,
        state: Sequence[str] = (),
        narrowed: Mapping[str, str] = _NOTHING,
    ) -> None:
        self.program, self.specs = program, tuple(specs)
        self._state = tuple(s.name for s in specs if s.name in state and s.default is not None)
        self._narrowed = narrowed
        self._ranges = {
            dim: Dim(ends[0] or 0, ends[1], ends[2] or 1 if len(ends) > 2 else 1)
            for dim, ends in ranges.items()
        }
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def bind(self, given: Mapping[str, Any]) -> list[np.ndarray]:
        """The arrays in the order of the specs, defaults filled in; None is an input left out.

        Raises:
            InputError: an input is missing, unknown, of the wrong dtype or shape, or has a value
                outside its range; or a state is given in part.
        """
        names = tuple(given)
        plan = self._plans.get(names)
        if plan is None:
            plan = self._plan_for(names, given)
        arrays = plan.take(given)
        if tuple(map(type, arrays)) != plan.types:
            if any(value is None for value in arrays):
                return self.bind({k: v for k, v in given.items() if v is not None})
            arrays = tuple(as_numpy(s.name, v) for s, v in zip(plan.specs, arrays, strict=True))
        if tuple(map(_dtype_of, arrays)) != plan.dtypes:
            self._refuse_dtype(plan, arrays)
        sizes = self._sizes(plan, tuple(map(_shape_of, arrays)))
        for position, within in plan.values:
            if not within(arrays[position]):
                self._refuse_value(plan.specs[position], arrays[position])
        if not plan.defaults:
            return list(arrays)
        return _fill(arrays, plan.defaults, sizes)

    def _sizes(self, plan: _Plan, shapes: tuple[tuple[int, ...], ...]) -> dict[str, int]:
        """The size of each dimension, sums included."""
        sizes: dict[str, int] = {}
        for group in plan.groups:
            shape = shapes[group.first]
            if len(shape) != group.rank:
                self._refuse_shape(plan, group.first, shape, f"{group.rank} axes")
            for axis, fixed in group.fixed:
                if shape[axis] != fixed:
                    self._refuse_shape(plan, group.first, shape, f"{fixed} on axis {axis}")
            for axis, dim in group.named:
                size = shape[axis]
                if sizes.setdefault(dim, size) != size:
                    self._refuse_shape(plan, group.first, shape, _elsewhere(sizes, axis, dim))
            if group.members is not None and group.members(shapes).count(shape) != group.count:
                self._refuse_unlike(plan, group, shapes)
        for position, axis, dim, terms, number in plan.solved:
            sizes[dim] = shapes[position][axis] - number - sum([sizes[t] for t in terms])
            if sizes[dim] < 0:
                least = f"at least {shapes[position][axis] - sizes[dim]} on axis {axis}"
                self._refuse_shape(plan, position, shapes[position], least)
        sizes.update(plan.least)
        for given, axis, dim, terms, number in plan.sums:
            sizes[dim] = size = number + sum([sizes[t] for t in terms])
            if given is not None and shapes[given][axis] != size:
                expected = f"{size} on axis {axis} ({dim!r})"
                self._refuse_shape(plan, given, shapes[given], expected)
        for dim, low, high, multiple in plan.ranges:
            size = sizes[dim]
            if size < low or (high is not None and size > high) or size % multiple:
                self._refuse_size(dim, size)
        return sizes

    # Plans: the same for all runs that give the same names ----------------------------------------

    def _plan_for(self, names: tuple[str, ...], given: Mapping[str, Any]) -> _Plan:
        known = {spec.name for spec in self.specs}
        if unknown := [name for name in names if name not in known]:
            self._refuse_unknown(unknown[0], names)
        for spec in self.specs:
            if given.get(spec.name) is None and spec.default is None:
                self._refuse_missing(spec)
        given_state = [name for name in self._state if given.get(name) is not None]
        if given_state and len(given_state) < len(self._state):
            self._refuse_part(given_state)
        plan = self._make_plan({name for name in names if given[name] is not None})
        if all(value is not None for value in given.values()):
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[names] = plan
        return plan

    def _make_plan(self, names: set[str]) -> _Plan:
        specs = [spec for spec in self.specs if spec.name in names]
        absent = [spec for spec in self.specs if spec.name not in names]
        known = {dim for spec in specs for _, dim in _named_axes(spec)}
        emptied = {dim for spec in absent for _, dim in _named_axes(spec)} - known
        solved: list[_Solved] = []
        sums: list[_Sum] = []
        for position, spec in enumerate(specs):
            for axis, dim, terms, number in _sum_axes(spec):
                unknown = [t for t in terms if t not in known and t not in emptied]
                if len(unknown) == 1:  # a name that is only in a sum follows from it
                    rest = tuple(t for t in terms if t in known)
                    taken = number + sum(self._least(t) for t in terms if t in emptied)
                    solved.append((position, axis, unknown[0], rest, taken))
                    known.add(unknown[0])
                sums.append((position, axis, dim, terms, number))
        for spec in absent:
            sums += [(None, axis, dim, terms, num) for axis, dim, terms, num in _sum_axes(spec)]
        # A name that no input has takes its least size: an empty past, for example.
        summed = {term for entry in sums for term in entry[3]}
        least = {dim: self._least(dim) for dim in (summed | emptied) - known}
        here = known | set(least) | {entry[2] for entry in sums}
        # A sum that no input has may have a limit of the model's own.
        sums += [(None, 0, dim, *_split(dim)) for dim in self._ranges if _is_sum_of(dim, here)]
        here |= {entry[2] for entry in sums}
        return _Plan(
            specs=tuple(specs),
            take=_taker([spec.name for spec in specs]),
            types=(np.ndarray,) * len(specs),
            dtypes=tuple(np.dtype(spec.dtype) for spec in specs),
            groups=tuple(_groups(specs)),
            solved=tuple(solved),
            least=least,
            sums=tuple(sums),
            ranges=tuple(
                (d, r.min, r.max, r.multiple) for d, r in self._ranges.items() if d in here
            ),
            values=tuple(
                (position, within)
                for position, spec in enumerate(specs)
                if (within := fits(spec, self._narrowed.get(spec.dtype))) is not None
            ),
            defaults=tuple((i, s) for i, s in enumerate(self.specs) if s.name not in names),
        )

    def _least(self, dim: str) -> int:
        return self._ranges.get(dim, Dim()).min

    # Refusals, away from the path that runs -------------------------------------------------------

    def _refuse_unknown(self, name: str, given: Sequence[str]) -> NoReturn:
        raise InputError(
            f"Program {self.program!r} has no input {name!r}",
            expected=", ".join(spec.name for spec in self.specs),
            found=", ".join(map(str, given)),
            hint="`omnigraph inspect` lists the inputs of each program",
        )

    def _refuse_missing(self, spec: TensorSpec) -> NoReturn:
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} is missing",
            expected=f"{spec.dtype} {shape_text(spec.shape)}",
            hint=f"pass {spec.name}=…",
        )

    def _refuse_part(self, given: Sequence[str]) -> NoReturn:
        missing = [name for name in self._state if name not in given]
        raise InputError(
            f"The state of program {self.program!r} is given in part: {missing[0]!r} is missing",
            expected=f"all of its {len(self._state)} tensors, or none for an empty state",
            found=f"{len(given)}: {', '.join(given[:3])}{', …' if len(given) > 3 else ''}",
            hint="pass every output of the last call that is the state of the next one",
        )

    def _refuse_value(self, spec: TensorSpec, array: np.ndarray) -> NoReturn:
        found = outside(spec, array, self._narrowed.get(spec.dtype))
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} has a value outside its range, at "
            f"{shape_text(found.position)}",
            expected=found.expected,
            found=found.value,
            hint=found.hint,
        )

    def _refuse_dtype(self, plan: _Plan, arrays: Sequence[np.ndarray]) -> None:
        for spec, dtype, array in zip(plan.specs, plan.dtypes, arrays, strict=True):
            if array.dtype != dtype:
                raise InputError(
                    f"Input {spec.name!r} of program {self.program!r} has the wrong dtype",
                    expected=spec.dtype,
                    found=str(array.dtype),
                    hint=f"convert it with .astype({spec.dtype!r}); nothing is cast silently",
                )

    def _refuse_unlike(
        self, plan: _Plan, group: _Group, shapes: Sequence[tuple[int, ...]]
    ) -> NoReturn:
        """Refuse the first input whose shape differs from others of the same declared shape."""
        shape = shapes[group.first]
        position = next(i for i in group.positions if shapes[i] != shape)
        self._refuse_shape(
            plan,
            position,
            shapes[position],
            f"{shape_text(shape)}, as {plan.specs[group.first].name!r} has",
        )

    def _refuse_shape(
        self, plan: _Plan, position: int, shape: tuple[int, ...], expected: str
    ) -> NoReturn:
        spec = plan.specs[position]
        raise InputError(
            f"Input {spec.name!r} of program {self.program!r} has the wrong shape",
            expected=f"{shape_text(spec.shape)}: {expected}",
            found=shape_text(shape),
            hint="dimensions of one name have one size in all inputs of a run",
        )

    def _refuse_size(self, dim: str, size: int) -> NoReturn:
        raise InputError(
            f"Program {self.program!r} cannot take dimension {dim!r} of this size",
            expected=str(self._ranges[dim]),
            found=str(size),
            hint=f"export with --dynamic {dim}=MIN:MAX to take other sizes",
        )


@dataclass(frozen=True)
class _Group:
    """Inputs of one declared shape, which therefore have one shape in a run."""

    first: int
    positions: tuple[int, ...]
    members: Callable[[Any], tuple[tuple[int, ...], ...]] | None  # None where there is only one
    count: int
    rank: int
    fixed: tuple[tuple[int, int], ...]
    named: tuple[tuple[int, str], ...]


#: A sum on an axis of an input: its position (None: left out), axis, text, names, and number.
_Sum = tuple[int | None, int, str, tuple[str, ...], int]
#: A sum that gives a name: its position, axis, that name, the other names, and the number.
_Solved = tuple[int, int, str, tuple[str, ...], int]


@dataclass(frozen=True)
class _Plan:
    """How to bind one set of names; positions count the inputs that are given, in their order.

    Args:
        least: the sizes of names that no given input has.
        ranges: the names, and the sums, that have a range: with its ends and its multiple.
        values: positions of inputs whose values have a range, and the check of it.
        defaults: position among all inputs, and spec, of those left out.
    """

    specs: tuple[TensorSpec, ...]
    take: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    types: tuple[type, ...]
    dtypes: tuple[np.dtype, ...]
    groups: tuple[_Group, ...]
    solved: tuple[_Solved, ...]
    least: Mapping[str, int]
    sums: tuple[_Sum, ...]
    ranges: tuple[tuple[str, int, int | None, int], ...]
    values: tuple[tuple[int, Fits], ...]
    defaults: tuple[tuple[int, TensorSpec], ...]


def _taker(names: list[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda given: tuple([given[name] for name in names])


def _groups(specs: Sequence[TensorSpec]) -> list[_Group]:
    alike: dict[tuple[int | str, ...], list[int]] = {}
    for position, spec in enumerate(specs):
        alike.setdefault(spec.shape, []).append(position)
    return [
        _Group(
            positions[0],
            tuple(positions),
            itemgetter(*positions) if len(positions) > 1 else None,
            len(positions),
            len(shape),
            tuple((axis, dim) for axis, dim in enumerate(shape) if isinstance(dim, int)),
            tuple(_named_axes(specs[positions[0]])),
        )
        for shape, positions in alike.items()
    ]


def _named_axes(spec: TensorSpec) -> list[tuple[int, str]]:
    return [
        (axis, dim)
        for axis, dim in enumerate(spec.shape)
        if isinstance(dim, str) and len(dim_terms(dim)) == 1
    ]


def _sum_axes(spec: TensorSpec) -> list[tuple[int, str, tuple[str, ...], int]]:
    """The axes that are sums: axis, text, names, and the number that they are added to."""
    found = []
    for axis, dim in enumerate(spec.shape):
        if isinstance(dim, str) and len(dim_terms(dim)) > 1:
            found.append((axis, dim, *_split(dim)))
    return found


def _fill(
    arrays: tuple[np.ndarray, ...],
    defaults: Sequence[tuple[int, TensorSpec]],
    sizes: Mapping[str, int],
) -> list[np.ndarray]:
    """All arrays, with defaults for those left out; equal defaults are one array."""
    filled, made = list(arrays), {}
    for position, spec in defaults:
        shape = tuple([d if isinstance(d, int) else sizes[d] for d in spec.shape])
        key = (shape, spec.dtype, spec.default)
        if key not in made:
            made[key] = np.full(shape, spec.default, spec.dtype)
        filled.insert(position, made[key])
    return filled


def _split(dim: str) -> tuple[tuple[str, ...], int]:
    """The names of a sum, and its number."""
    terms = dim_terms(dim)
    names = tuple(term for term in terms if not term.isdigit())
    return names, sum(int(term) for term in terms if term.isdigit())


def _is_sum_of(dim: str, names: set[str]) -> bool:
    """Whether a dimension is a sum of these names, and none of them itself."""
    return dim not in names and names.issuperset(_split(dim)[0])


def _elsewhere(sizes: Mapping[str, int], axis: int, dim: str) -> str:
    return f"{sizes[dim]} on axis {axis} ({dim!r}, set by another input)"


def shape_text(shape: Sequence[int | str]) -> str:
    """A shape as messages show it: ``[batch, 16]``."""
    return "[" + ", ".join(map(str, shape)) + "]"


def shapes_text(specs: Sequence[TensorSpec], arrays: Sequence[np.ndarray]) -> str:
    """The shapes of the first inputs: ``input_ids [1, 3], attention_mask [1, 3]``."""
    shown = zip(specs[:_MOST_SHOWN], arrays, strict=False)
    text = ", ".join(f"{spec.name} {shape_text(array.shape)}" for spec, array in shown)
    return text + (", …" if len(specs) > _MOST_SHOWN else "")
