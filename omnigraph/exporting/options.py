"""The options of an export, checked once. Imports no compiler."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from omnigraph.artifact.schema import MOST_RMS
from omnigraph.errors import UsageError, suggest
from omnigraph.head_variants.counts import parse_variants
from omnigraph.option_field import names, option, set_field
from omnigraph.program import Dim
from omnigraph.quantization.options import Quantization

#: The options that choose a model, its programs and its passes.
OF_MODEL = ("config", "settings", "inputs", "precision", "programs", "dynamic", "passes")
#: The types of key/value caches, beside the model's own.
CACHE_TYPES = ("int8",)


def settings_of(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as a mapping.

    Raises:
        UsageError: a text has no key or no equals sign.
    """
    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--set {text!r} is no setting",
                expected="key=value",
                hint="for example --set positions=alibi",
            )
        settings[key] = value
    return settings


def ranges_of(text: str) -> dict[str, Dim]:
    """``batch=1:8,past=0:,height=32:640:32,sequence=64`` as a range for each dimension.

    Raises:
        UsageError: a part is not a range.
    """
    ranges = {}
    for part in names(text):
        name, equals, bounds = part.partition("=")
        try:
            if not equals:
                raise ValueError
            ranges[name.strip()] = _dim_of_text(bounds)
        except ValueError:
            raise UsageError(
                f"--dynamic {part!r} is no range",
                expected="DIM=MIN:MAX, DIM=MIN:, DIM=MIN:MAX:MULTIPLE or DIM=SIZE",
                hint="for example --dynamic batch=1:8,sequence=1:1024",
            ) from None
    return ranges


def range_of(name: str, given: object) -> Dim:
    """A dimension's range from what says it: a Dim, a size, ends, a ``range``, or text.

    Both ends of a pair are included, and None is no bound: ``(1, 8)``. A ``range`` leaves its end
    out, as everywhere in Python: ``range(1, 9)``; one with a step, ``range(8, 65, 8)``, has
    multiples of it alone. Sizes may be integers of numpy.

    Raises:
        UsageError: it is none of these, or the range is empty.
    """
    match given:
        case Dim():
            return given
        case bool():
            pass
        case int() | np.integer():
            return Dim(int(given), int(given))
        case range(start=low, stop=high, step=1):
            return Dim(low, high - 1)
        case range(start=low, step=step) if given and low > 0 and step > 1 and low % step == 0:
            return Dim(low, given[-1], step)
        case (int() | np.integer() as low, int() | np.integer() | None as high):
            return Dim(int(low), None if high is None else int(high))
        case str():
            with contextlib.suppress(ValueError):
                return _dim_of_text(given)
    raise UsageError(
        f"What is given for dimension {name!r} is no range of sizes",
        expected='omnigraph.Dim(1, 8), (1, 8), range(1, 9), "1:8", or one size',
        found=repr(given),
        hint="both ends are included, but for a range's; Dim(1), (1, None) and '1:' have no bound",
    )


def _ranges(given: object) -> dict[str, Dim]:
    if isinstance(given, str):
        return ranges_of(given)
    if isinstance(given, Mapping):
        return {dim: range_of(dim, sizes) for dim, sizes in given.items()}
    raise UsageError(
        "The ranges of dimensions are no mapping",
        expected='{"batch": (1, 8)}, or the text of --dynamic: "batch=1:8"',
        found=repr(given),
        hint="name each dimension that is not to have its default range",
    )


def _dim_of_text(text: str) -> Dim:
    """``1:8``, ``1:``, ``8`` or ``32:640:32`` as a range; a ValueError where it is none."""
    low, *rest = text.split(":")
    least = int(low)
    most = (int(rest[0]) if rest[0].strip() else None) if rest else least
    multiple = [int(part) for part in rest[1:]]
    if len(multiple) > 1:
        raise ValueError(text)
    return Dim(least, most, *multiple)


def arrays_of(file: str) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file, by name.

    Raises:
        UsageError: it is no such file.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{file} holds no example inputs",
            expected="a .npz file with an array for each input, by name",
            found=f"{type(error).__name__}: {error}",
            hint='numpy.savez("example.npz", input_ids=…) writes one',
        ) from error


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export. ``omnigraph.export`` takes them as keywords too.

    Args:
        precision: one that each target can do, or "auto", which chooses for each layer the fastest
            within a bound on the loss of accuracy; None is each target's first.
        config: the size of "omninet": tiny, small or seed (the default).
        programs: which programs to compile; None is all.
        settings: fields of the model's configuration and options of the targets, as text.
        inputs: example inputs by name, where the model is a module or a file.
        dynamic: the range of each dimension, as `range_of` reads it: ``Dim(1, 8)``, ``(1, 8)``,
            ``range(1, 9)``, ``"1:8"``; one size makes it fixed.
        variants: "heads=12,8" adds, for each program, one with 12 heads per attention and one with
            8; a Session may choose one for a request (`omnigraph.head_variants`).
        importance: a JSON or ``.npz`` file with the importance of each head, for ``variants``.
        outputs: which outputs to compute; empty is all. A program with none of these outputs keeps
            all of its own.
        last: outputs to compute for the last token alone, such as "logits".
        kv_cache: "int8" keeps keys and values in eight bits between calls, with a scale for each
            head; None keeps them in the model's own type.
        rtol: a root-mean-square tolerance, in place of the one that follows from the precision.
        require_fused: refuse a program with an attention that is not one node.
        verify_each: compare the numbers after every pass, too.
        passes: edits of each target's pipeline, joined by commas: "-name" leaves a pass out; "name"
            or "name:option=value" sets the options of a pass, or adds it where there is none.
        sign: a PEM file with the Ed25519 private key that signs each artifact; None signs nothing.
        quantization: how to quantize.
        calibration: DATA for calibration, in place of that of ``quantization``.

    Raises:
        UsageError: an option has an invalid value.
    """

    precision: str | None = option(None, "default: the target's first", metavar="P")
    config: str | None = option(None, "of omninet: tiny, small, seed (default)", metavar="NAME")
    programs: Sequence[str] | None = option(
        None, "default: all of the model's", metavar="NAME[,NAME…]", parse=names
    )
    settings: Mapping[str, str] | None = option(
        None,
        "a field of the model's configuration, or an option of a target",
        metavar="KEY=VALUE",
        flag="--set",
        parse=settings_of,
        repeated=True,
    )
    dynamic: Mapping[str, Dim] | None = option(
        None,
        "range of each dimension, such as batch=1:8,sequence=1:1024; N:N makes it fixed",
        metavar="DIM=MIN:MAX[,…]",
        parse=ranges_of,
    )
    variants: str | None = option(
        None, "add programs with N heads per attention", metavar="heads=N,N…"
    )
    importance: str | None = option(None, "of each head, for --variants", metavar="FILE")
    outputs: Sequence[str] = option(
        (), "default: all of the model's", metavar="NAME[,NAME…]", parse=names
    )
    last: Sequence[str] = option(
        (),
        "outputs to compute for the last token alone: logits",
        metavar="NAME[,NAME…]",
        parse=names,
    )
    kv_cache: str | None = option(
        None, "int8 keeps keys and values in eight bits between calls", metavar="TYPE"
    )
    rtol: float | None = option(None, "tolerance: relative rms error", metavar="X", parse=float)
    require_fused: bool = option(False, "refuse an attention that is not one node", switch="on")
    verify_each: bool = option(False, "compare the numbers after every pass", switch="on")
    passes: str = option(
        "",
        "add passes (a name, or file.py:Class), or leave them out (-name)",
        metavar="A,B:OPTION=VALUE,-C",
    )
    sign: str | os.PathLike[str] | None = option(
        None, "sign the artifact with an Ed25519 private key, a PEM file", metavar="KEY"
    )
    inputs: Mapping[str, Any] | None = option(
        None,
        "example inputs of a model.onnx or model.pt2: a .npz file with an array for each",
        metavar="FILE.npz",
        flag="--example",
        parse=arrays_of,
    )
    quantization: Quantization | None = None
    calibration: object | None = None

    def __post_init__(self) -> None:
        for name in ("outputs", "last"):
            set_field(self, name, names(getattr(self, name)))
        set_field(self, "programs", names(self.programs or ()) or None)
        parse_variants(self.variants, self.importance)
        if not isinstance(self.passes, str):
            set_field(self, "passes", ",".join(self.passes))
        if self.dynamic is not None:
            set_field(self, "dynamic", _ranges(self.dynamic))
        if self.kv_cache is not None and self.kv_cache not in CACHE_TYPES:
            raise UsageError(
                f"Key/value caches cannot be kept in {self.kv_cache!r}",
                expected=" or ".join(CACHE_TYPES),
                hint="leave --kv-cache out for the model's own type",
            )
        if self.rtol is not None and not (
            isinstance(self.rtol, float | int) and 0 < self.rtol < MOST_RMS
        ):
            raise UsageError(
                "A tolerance must be a number above zero, and below an output's own size, 1",
                expected="such as 0.001",
                found=repr(self.rtol),
                hint="leave --rtol out for the one that follows from the precision",
            )
        own = self.quantization.calibration if self.quantization is not None else None
        if self.calibration is not None and own is not None:
            raise UsageError(
                "Calibration data are given twice",
                expected="calibration, or quantization with a calibration of its own",
                hint="leave one of them out",
            )

    @classmethod
    def of(cls, options: ExportOptions | None, given: Mapping[str, Any]) -> ExportOptions:
        """Options with some of them set by keyword.

        Raises:
            UsageError: there is no such option.
        """
        if options is not None and not isinstance(options, cls):
            raise UsageError(
                "The options of an export are no ExportOptions",
                expected="omnigraph.ExportOptions(…), or options by keyword",
                found=type(options).__name__,
                hint='omnigraph.export(model, target, precision="int8")',
            )
        known = [found.name for found in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(
                    f"An export has no option {name!r}",
                    expected=", ".join(known),
                    hint=suggest(name, known, "help(omnigraph.ExportOptions) explains each option"),
                )
        return replace(options or cls(), **given)

    @property
    def heads(self) -> tuple[int, ...]:
        """How many heads an attention of each variant keeps, the most first."""
        return parse_variants(self.variants, self.importance)

    def check_used(self, used: Collection[str], by: str) -> None:
        """Refuse options that a command does not use.

        Args:
            used: the fields that it uses.
            by: the command, for a person.

        Raises:
            UsageError: another field is not at its default.
        """
        for found in fields(self):
            if found.name not in used and getattr(self, found.name) != found.default:
                raise UsageError(
                    f"{by} does not use option {found.name!r}",
                    expected=", ".join(used),
                    hint="leave it out; it is an option of export",
                )

    @property
    def quantizing(self) -> Quantization:
        """The options of quantization, with ``calibration`` filled in."""
        quantization = self.quantization or Quantization()
        if self.calibration is None:
            return quantization
        return replace(quantization, calibration=self.calibration)
