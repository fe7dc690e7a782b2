"""DATA: samples of a model's inputs, for calibration and for evaluation.

DATA is one of:

- ``samples.npz``: arrays named like the inputs, all with as many rows on their first axis; each row
  is a sample of batch 1.
- a folder of ``.npy`` files, ``NAME.npy`` being the rows of input NAME; they are mapped, not read.
- a folder of ``.npz`` files, each a sample: arrays named like the inputs, with their batch axis.
- a text file, with a tokenizer: a ``tokenizer.json`` of the ``tokenizers`` library, or "bytes", by
  which every byte is a token. The text is split into samples of so many tokens, which all inputs
  of tokens get alike.
- ``file.py:function`` or ``package.module:function``, or a callable: it is called without
  arguments, each time the samples are read, and gives inputs by name, with their batch axis.
- a sequence of such samples.

Without DATA there are random token ids, which say little about a model's activations.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from omnigraph.errors import UsageError
from omnigraph.program import (
    Case,
    Dim,
    DimLike,
    Program,
    TensorSpec,
    dim_terms,
    evaluate_dim,
    fit_sizes,
)

Feeds = Mapping[str, np.ndarray]

#: The source of samples that are drawn, where there is no DATA, as manifests name it.
RANDOM = "random token ids"
BYTES = "bytes"
#: Tokens of one sample of text, and positions of one that is drawn.
_TEXT_LENGTH, _RANDOM_LENGTH = 128, 64
_RANDOM_SAMPLES = 16
#: How many samples' beginnings are samples too, and how long those are, in positions.
_SAMPLES_SPLIT, _BEGINNINGS = 16, (1, 4, 16)
#: Dimensions that are no positions of this call.
_NO_POSITIONS = ("batch", "past", "capacity")
_FORMS = (
    "samples.npz, a folder of .npy or .npz files, a text file with a tokenizer, or file.py:function"
)


@dataclass(frozen=True)
class CalibrationData:
    """Samples that can be read again and again.

    Args:
        source: what they are, for a person and for the manifest.
        read: gives an iterator over the samples, from the first.
        samples: how many of them are taken at most.
        by_role: whether arrays go by the role of the inputs they are for, as those of text do,
            and not by their names.
    """

    source: str
    read: Callable[[], Iterator[Feeds]]
    samples: int
    by_role: bool = False

    def first(self) -> Feeds:
        """The first sample.

        Raises:
            UsageError: there is none.
        """
        for sample in self.read():
            return sample
        raise UsageError(
            f"The data {self.source} have no samples",
            expected="at least one",
            hint=f"DATA: {_FORMS}",
        )

    def named(self, sample: Feeds, inputs: Sequence[TensorSpec]) -> Feeds:
        """The arrays of a sample by the names of the inputs."""
        if not self.by_role:
            return sample
        return {spec.name: sample[spec.role] for spec in inputs if spec.role in sample}

    def suits(self, inputs: Sequence[TensorSpec]) -> bool:
        """Whether every input that must be given is in the samples."""
        given = self.named(self.first(), inputs)
        return all(spec.name in given or spec.default is not None for spec in inputs)

    def check(self, programs: Iterable[Program]) -> None:
        """Refuse data that suit none of some programs.

        Raises:
            UsageError: naming the inputs that are missing.
        """
        programs = list(programs)
        if any(self.suits(program.inputs) for program in programs):
            return
        first = programs[0]
        needed = [spec.name for spec in first.inputs if spec.default is None]
        raise UsageError(
            f"The data {self.source} lack inputs of every program",
            expected=f"of program {first.name!r}: {', '.join(needed)}",
            found=", ".join(self.first()) or "nothing",
            hint="arrays are called like the inputs that `omnigraph inspect MODEL` lists",
        )

    def feeds(
        self, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim] | None = None
    ) -> Feedings:
        """The samples as one program takes them: its inputs in their types, defaults filled in.

        Args:
            inputs: the program's.
            dims: the ranges of its dimensions; where given, the beginnings of some samples are
                samples too. Data of one length show no short inputs, whose attention averages
                over fewer tokens and so gives larger results.
        """
        return Feedings(self, tuple(inputs), dims)


@dataclass(frozen=True)
class Feedings:
    """Samples for one program; every iteration begins with the first."""

    data: CalibrationData
    inputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim] | None = None

    @property
    def count(self) -> int:
        """How many there are, beginnings not counted."""
        return sum(1 for _ in islice(self.data.read(), self.data.samples))

    def __iter__(self) -> Iterator[Feeds]:
        for number, sample in enumerate(islice(self.data.read(), self.data.samples), 1):
            given = self.data.named(sample, self.inputs)
            whole = fit(given, self.inputs, f"sample {number} of {self.data.source}")
            yield whole
            if self.dims is not None and number <= _SAMPLES_SPLIT:
                for length in _BEGINNINGS:
                    yield beginning(whole, self.inputs, self.dims, length)


def beginning(
    feeds: Feeds, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], length: int
) -> Feeds:
    """The first so many positions of a sample, or the fewest that the program takes."""
    sizes: dict[str, int] = {}
    for spec in inputs:
        for dim, size in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if isinstance(dim, str) and dim.isidentifier():
                most = size if dim in _NO_POSITIONS else dims.get(dim, Dim()).clamp(length)
                sizes[dim] = min(size, most)
    return {
        spec.name: feeds[spec.name][
            tuple(
                slice(0, evaluate_dim(dim, sizes) if _is_known(dim, sizes) else None)
                for dim in spec.shape
            )
        ]
        for spec in inputs
    }


def _is_known(dim: DimLike, sizes: Mapping[str, int]) -> bool:
    return isinstance(dim, str) and all(t.isdigit() or t in sizes for t in dim_terms(dim))


def open_data(data: object, *, tokenizer: str | None = None, samples: int = 128) -> CalibrationData:
    """Find DATA, in any of its forms.

    Args:
        data: a path, "file.py:function", a callable, or a sequence of samples.
        tokenizer: of text: a ``tokenizer.json``, or "bytes".
        samples: how many are taken at most.

    Raises:
        UsageError: it is in none of the forms, or cannot be read.
    """
    if callable(data):
        name = getattr(data, "__name__", "callable")
        return CalibrationData(name, lambda: iter(data()), samples)
    if isinstance(data, Sequence) and not isinstance(data, str):
        return CalibrationData(f"{len(data)} samples given", lambda: iter(data), samples)
    if not isinstance(data, str | os.PathLike):
        raise UsageError(
            "The calibration data are in no form that is known",
            expected=_FORMS,
            found=type(data).__name__,
            hint="see `omnigraph.quantization.data`",
        )
    text, path = os.fspath(data), Path(data)
    if path.is_dir():
        return CalibrationData(path.name, _folder(path), samples)
    if path.suffix == ".npz":
        return CalibrationData(path.name, lambda: _rows(_open_npz(path), path), samples)
    if path.is_file():
        return CalibrationData(path.name, _text(path, tokenizer), samples, by_role=True)
    if ":" in text:
        from omnigraph.frontends.resolve import find_callable

        function = find_callable(text, "DATA names a function that gives inputs by name")
        return CalibrationData(text, lambda: iter(function()), samples)
    raise UsageError(f"There are no data {text}", expected=_FORMS, hint="check the path")


def fit(sample: Feeds, inputs: Sequence[TensorSpec], where: str) -> Feeds:
    """One sample as a program takes it, in its types; what may be left out is filled in.

    Raises:
        UsageError: an input is missing, or is not of its type or number of axes, or is no number.
    """
    batch, fitted = 1, {}
    for spec in inputs:
        if spec.name in sample:
            fitted[spec.name] = _as_input(np.asarray(sample[spec.name]), spec, where)
            batch = fitted[spec.name].shape[0] if fitted[spec.name].ndim else batch
    sizes: dict[str, int] = {"batch": batch}
    for spec in inputs:
        if spec.name in fitted:
            for dim, size in zip(spec.shape, fitted[spec.name].shape, strict=True):
                if isinstance(dim, str) and dim.isidentifier():
                    sizes[dim] = size
    for spec in inputs:
        if spec.name in fitted:
            continue
        if spec.default is None:
            raise UsageError(
                f"Input {spec.name!r} is missing in {where}",
                expected=", ".join(s.name for s in inputs if s.default is None),
                found=", ".join(sample) or "nothing",
                hint="arrays are called like the inputs",
            )
        shape = [_size(dim, sizes) for dim in spec.shape]
        fitted[spec.name] = np.full(shape, spec.default, np.dtype(spec.dtype))
    return fitted


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension; one that no given input has is empty, as a past is."""
    if isinstance(dim, int):
        return dim
    return evaluate_dim(dim, {**dict.fromkeys(dim_terms(dim), 0), **sizes})


def _as_input(array: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    dtype = np.dtype(spec.dtype)
    integers = dtype.kind in "iub"
    if array.ndim != len(spec.shape) or integers != (array.dtype.kind in "iub"):
        raise UsageError(
            f"Input {spec.name!r} is not what the program takes, in {where}",
            expected=f"{spec.dtype} [{', '.join(map(str, spec.shape))}]",
            found=f"{array.dtype} {list(array.shape)}",
            hint="the batch axis is a part of each sample of a callable or of a folder of .npz",
        )
    if not integers and not np.isfinite(array).all():
        raise UsageError(
            f"Input {spec.name!r} is NaN or infinite in {where}",
            expected="finite numbers",
            hint="leave the sample out",
        )
    return np.ascontiguousarray(array, dtype)


def random_data(program: Program, samples: int, *, seed: int = 1000) -> list[Feeds]:
    """Samples that are drawn, of one sequence each, as the program draws its own inputs.

    A few long and a few short ones are enough: more of them show nothing new.
    """
    drawn: list[Feeds] = []
    for place in range(min(samples, _RANDOM_SAMPLES)):
        length = _RANDOM_LENGTH if place % 2 == 0 else _BEGINNINGS[place // 2 % len(_BEGINNINGS)]
        sizes = fit_sizes(program, {"batch": 1, "past": 0}, length)
        case = Case("calibration", sizes, seed=seed + place)
        inputs = program.make_inputs(case)
        drawn.append({name: np.asarray(value.cpu().numpy()) for name, value in inputs.items()})
    return drawn


def _open_npz(path: Path) -> Mapping[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
        return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} cannot be read",
            expected="a file that numpy.savez wrote, without objects",
            found=str(error).splitlines()[0],
            hint="other DATA: " + _FORMS,
        ) from error


def _rows(arrays: Mapping[str, np.ndarray], path: Path) -> Iterator[Feeds]:
    """Each row of some arrays as a sample of batch 1."""
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise UsageError(
            f"The arrays of {path} have not the same number of rows",
            expected="as many samples of every input, one or more",
            found=", ".join(f"{name}: {count}" for name, count in counts.items()),
            hint="the first axis counts samples",
        )
    for row in range(next(iter(counts.values()), 0)):
        yield {name: np.asarray(array[row : row + 1]) for name, array in arrays.items()}


def _folder(folder: Path) -> Callable[[], Iterator[Feeds]]:
    rows, samples = sorted(folder.glob("*.npy")), sorted(folder.glob("*.npz"))
    if bool(rows) == bool(samples):
        raise UsageError(
            f"{folder} holds no data",
            expected="NAME.npy for each input, or one .npz for each sample",
            found="both" if rows else "neither",
            hint="other DATA: " + _FORMS,
        )
    if samples:
        return lambda: (_open_npz(path) for path in samples)
    return lambda: _rows({path.stem: _mapped(path) for path in rows}, folder)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read",
            expected="a file that numpy.save wrote",
            found=str(error),
            hint="arrays of objects are not read",
        ) from error


def _text(path: Path, tokenizer: str | None) -> Callable[[], Iterator[Feeds]]:
    encode = _encoder(path, tokenizer)

    def samples() -> Iterator[Feeds]:
        left: list[int] = []
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                left += encode(line)
                while len(left) >= _TEXT_LENGTH:
                    yield _tokens(left[:_TEXT_LENGTH])
                    del left[:_TEXT_LENGTH]
        if left:
            yield _tokens(left)

    return samples


def _tokens(ids: Sequence[int]) -> Feeds:
    """A sample of text, by role."""
    row = np.array([ids], np.int64)
    return {"tokens": row, "mask": np.ones_like(row)}


def _encoder(path: Path, tokenizer: str | None) -> Callable[[str], list[int]]:
    if tokenizer is None:
        raise UsageError(
            f"{path} is text, and nothing says what its tokens are",
            expected="--tokenizer tokenizer.json, or --tokenizer bytes",
            hint="other DATA: " + _FORMS,
        )
    if tokenizer == BYTES:
        return lambda line: list(line.encode())
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise UsageError(
            "Reading text needs the tokenizers library", hint="pip install tokenizers"
        ) from error
    try:
        found: Any = Tokenizer.from_file(tokenizer)
    except Exception as error:
        raise UsageError(
            f"The tokenizer {tokenizer} cannot be read",
            expected="a tokenizer.json of the tokenizers library",
            found=str(error).splitlines()[0],
            hint="save_pretrained of a fast tokenizer of Hugging Face writes one",
        ) from error
    return lambda line: list(found.encode(line, add_special_tokens=False).ids)
