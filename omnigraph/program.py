"""The programs of a model, their tensors and their dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omnigraph.errors import UsageError

if TYPE_CHECKING:
    from omnigraph.graph import Graph

#: What a tensor is for. A frontend sets the roles of a program's tensors, from their names; all
#: that comes after reads the role.
ROLES: Mapping[str, str] = {
    "tokens": "token ids [B, T]",
    "mask": "which tokens are shown [B, T], or [B, P + T] with a past: 1, and 0 for padding",
    "positions": "the position of each token [B, T]",
    "segments": "which of several texts each token is of [B, T]: 0, 1, …",
    "past": "keys or values of the tokens before [B, H, P, D]",
    "present": "keys or values of all tokens so far [B, H, P + T, D], the next call's past",
    "embeddings": "vectors of the model's width, in place of tokens or as its result [B, T, C]",
    "features": "what is no text: pixels, a spectrogram, a wave",
    "logits": "scores of each token of the vocabulary [B, T, V], or of each class",
    "labels": "what the logits are to predict [B, T]; a negative number counts for nothing",
}

#: A dimension of a tensor: a number, a name, or a sum of names such as ``"past + sequence"``.
DimLike = int | str


def dim_terms(dim: str) -> tuple[str, ...]:
    """The names that a dimension is the sum of: ``"past + sequence"`` gives both."""
    return tuple(term.strip() for term in dim.split("+"))


def evaluate_dim(dim: DimLike, sizes: Mapping[str, int]) -> int:
    """The size of ``dim`` where each named dimension has the size given.

    Raises:
        KeyError: a name has no size.
    """
    if isinstance(dim, int):
        return dim
    return sum(int(term) if term.isdigit() else sizes[term] for term in dim_terms(dim))


@dataclass(frozen=True)
class Dim:
    """The sizes a named dimension may take, both ends included; ``max=None`` is no bound.

    Args:
        multiple: each size is a multiple of this number.

    Raises:
        UsageError: there are no such sizes.
    """

    min: int = 1
    max: int | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.min < 0 or (self.max is not None and self.max < self.min):
            raise UsageError(
                "A dimension's range is empty or negative",
                expected="0 <= min <= max",
                found=f"{self.min}:{self.max}",
                hint="both ends are included: 1:1 is the one size 1",
            )
        if self.multiple < 1 or self.clamp(self.min) not in self:
            raise UsageError(
                "A dimension's range has no size",
                expected="a multiple of a number above zero between both ends",
                found=str(self),
                hint="32:640:32 is the sizes 32, 64, and so on up to 640",
            )

    def clamp(self, size: int) -> int:
        """The allowed size nearest to ``size``, of two the larger; a multiple is rounded up to."""
        step = self.multiple
        size = -(-max(self.min, size) // step) * step
        return size if self.max is None else min(size, self.max // step * step)

    def within(self, other: Dim) -> Dim:
        """The sizes that both ranges allow.

        Raises:
            UsageError: there are none.
        """
        ends = [end for end in (self.max, other.max) if end is not None]
        multiple = math.lcm(self.multiple, other.multiple)
        return Dim(max(self.min, other.min), min(ends) if ends else None, multiple)

    def __contains__(self, size: int) -> bool:
        inside = self.min <= size and (self.max is None or size <= self.max)
        return inside and size % self.multiple == 0

    def __str__(self) -> str:
        ends = f"{self.min}:{'' if self.max is None else self.max}"
        return ends if self.multiple == 1 else f"{ends}:{self.multiple}"


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: name, numpy dtype name, shape of numbers and dimension names.

    Args:
        default: for an input that may be left out, the value that fills it; a dimension that no
            given input determines then has its smallest size (an empty past, say).
        role: what the tensor is for, one of `ROLES`; "" where that is not known.
        least: the least value that an element may have; None is no bound.
        greatest: the greatest value that an element may have; a NaN is above every bound.

    Raises:
        UsageError: there is no such role.
    """

    name: str
    dtype: str
    shape: tuple[DimLike, ...]
    default: int | float | None = None
    role: str = ""
    least: int | float | None = None
    greatest: int | float | None = None

    def __post_init__(self) -> None:
        _check_role(self.name, self.role)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-ready fields."""
        fields: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}
        if self.default is not None:
            fields["default"] = self.default
        if self.role:
            fields["role"] = self.role
        bounds = {"least": self.least, "greatest": self.greatest}
        return fields | {name: bound for name, bound in bounds.items() if bound is not None}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TensorSpec:
        """The inverse of ``to_dict``; a role that a later version has is not known here."""
        role = fields.get("role", "")
        return cls(
            fields["name"],
            fields["dtype"],
            tuple(fields["shape"]),
            fields.get("default"),
            role if role in ROLES else "",
            fields.get("least"),
            fields.get("greatest"),
        )


def _check_role(tensor: str, role: str) -> None:
    if role and role not in ROLES:
        raise UsageError(
            f"Tensor {tensor!r} has a role that there is not",
            expected=", ".join(ROLES),
            found=role,
            hint="leave the role out where none of these is meant",
        )


def mask_of(spec: TensorSpec, inputs: Iterable[TensorSpec]) -> TensorSpec | None:
    """The mask of the positions of a tensor [B, T, …]: an input [B, T], or [B, P + T]."""
    batch, positions = (*spec.shape, None, None)[:2]
    for mask in inputs:
        if mask.role == "mask" and len(mask.shape) == 2 and mask.shape[0] == batch:
            length = mask.shape[1]
            if length == positions or str(positions) in dim_terms(str(length)):
                return mask
    return None


@dataclass(frozen=True)
class Case:
    """One set of inputs for comparing numbers: a name, the sizes of the dimensions, the padding.

    ``padding`` says where rows of an attention mask are padded: "none", "left" or "right".
    """

    name: str
    sizes: Mapping[str, int]
    padding: str = "none"
    seed: int = 0


@dataclass(frozen=True)
class Program:
    """One entry point of a model, as it is traced, compiled and run.

    Args:
        name: "forward", "encode", "decode", …
        module: a ``torch.nn.Module`` called with the inputs by name; it returns one tensor, or a
            sequence or mapping of tensors in the order of ``outputs``.
        inputs: the inputs, in order.
        outputs: the names of the outputs, in order.
        dims: the range of each named dimension, and of any sum of names that has a bound.
        make_inputs: gives a set of example inputs (torch tensors by name) for a case.
        state: pairs (input, output) where the output is the next call's input.
        fixed: dimensions that were given one size, which the shapes no longer name.
        root: where in ``module`` the model itself stands, if the module only wraps it; modules and
            weights are named by their paths from there.
        to_graph: gives the program's Graph; None traces ``module`` with torch.
        output_roles: the roles of outputs, as far as they are known, by name.
        example: the sizes of the example that the program was made from, at which it runs; empty
            where its ranges are known, and need not be found by running it.
        declared: the dimensions whose range a person gave.
        limits: a sentence on each range that follows a limit of the module, found by running it.
        axes_hint: how to name the axes that vary, where the names were guessed; else "".
        left_out: what the module returns beside tensors, which no artifact gives: path and type.
        expendable: an export that was not asked for it by name goes on without it where it cannot
            be traced, and says why.

    Raises:
        UsageError: two tensors of one name, a dimension that is no name, or a role that there is
            not.
    """

    name: str
    module: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Dim]
    make_inputs: Callable[[Case], dict[str, Any]]
    state: tuple[tuple[str, str], ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)
    root: str = ""
    to_graph: Callable[[Program], Graph] | None = None
    output_roles: Mapping[str, str] = field(default_factory=dict)
    example: Mapping[str, int] = field(default_factory=dict)
    declared: frozenset[str] = frozenset()
    limits: tuple[str, ...] = ()
    axes_hint: str = ""
    left_out: tuple[str, ...] = ()
    expendable: bool = False

    def __post_init__(self) -> None:
        names = [*(spec.name for spec in self.inputs), *self.outputs]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UsageError(
                f"Program {self.name!r} has two tensors of one name",
                expected="a name of its own for each input and output",
                found=", ".join(twice),
                hint="rename one of them",
            )
        for name, role in self.output_roles.items():
            _check_role(name, role)
        for dim in self.dim_names():
            if not dim.isidentifier():
                raise UsageError(
                    f"A dimension of program {self.name!r} has no name that can be used",
                    expected="letters, digits and underscores, or a sum: past + sequence",
                    found=repr(dim),
                    hint="--dynamic and error messages call dimensions by these names",
                )

    def roles(self) -> dict[str, str]:
        """The role of each input and output that has one, by name."""
        named = {spec.name: spec.role for spec in self.inputs} | dict(self.output_roles)
        return {name: role for name, role in named.items() if role}

    def dim_names(self) -> tuple[str, ...]:
        """The named dimensions of the inputs, in order of first appearance."""
        names = (
            t for s in self.inputs for d in s.shape if isinstance(d, str) for t in dim_terms(d)
        )
        return tuple(dict.fromkeys(n for n in names if not n.isdigit()))

    def with_dims(self, dims: Mapping[str, Dim]) -> Program:
        """The same program with some ranges replaced, as a person declares them.

        A least size of 1 is the default, and may be widened to 0: the contract tries it then.

        Raises:
            UsageError: a range outside what the model can take.
        """
        merged = dict(self.dims)
        for name, dim in dims.items():
            own = merged.get(name)
            if own is None:
                continue
            if dim.min < own.min != Dim().min or (
                own.max is not None and (dim.max is None or dim.max > own.max)
            ):
                raise UsageError(
                    f"Program {self.name!r} cannot take dimension {name!r} in the range {dim}",
                    expected=f"a range within {own}",
                    found=str(dim),
                    hint="the model's own limit is the wider one, such as max_positions",
                )
            merged[name] = replace(dim, multiple=math.lcm(dim.multiple, own.multiple))
        fixed = {n: d.min for n, d in merged.items() if d.min == d.max and len(dim_terms(n)) == 1}
        specs = tuple(
            replace(spec, shape=tuple(_fix(d, fixed) for d in spec.shape)) for spec in self.inputs
        )
        kept: dict[str, Dim] = {}
        for name, dim in merged.items():
            if name not in fixed and isinstance(left := _fix(name, fixed), str):
                kept[left] = kept[left].within(dim) if left in kept else dim
        return replace(
            self,
            inputs=specs,
            dims=kept,
            fixed={**self.fixed, **fixed},
            declared=self.declared | dims.keys(),
        )


def _fix(dim: DimLike, fixed: Mapping[str, int]) -> DimLike:
    """A dimension with the sizes that are fixed put in: "past + sequence" may be "past + 1"."""
    if isinstance(dim, int):
        return dim
    terms = [fixed.get(term, term) for term in dim_terms(dim)]
    numbers = sum(t for t in terms if isinstance(t, int))
    names = [t for t in terms if isinstance(t, str)]
    if not names:
        return numbers
    return " + ".join([*names, str(numbers)] if numbers else names)


def fit_sizes(program: Program, sizes: Mapping[str, int], default: int = 5) -> dict[str, int]:
    """Sizes for every dimension of a program: those given, moved into range, and the fixed.

    Where a sum of dimensions has a bound, its largest terms give way.
    """
    names = program.dim_names()
    ranges = {name: program.dims.get(name, Dim()) for name in names}
    fitted = {name: ranges[name].clamp(sizes.get(name, default)) for name in names}
    for sum_, allowed in program.dims.items():
        terms = [term for term in dim_terms(sum_) if not term.isdigit()]
        if allowed.max is None or not set(terms) <= set(fitted):
            continue
        while evaluate_dim(sum_, fitted) > allowed.max:
            largest = max(terms, key=lambda term: fitted[term] - ranges[term].min)
            if fitted[largest] == ranges[largest].min:
                break
            fitted[largest] -= ranges[largest].multiple
    return {**fitted, **program.fixed}
