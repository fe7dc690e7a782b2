"""What an export is asked to do: one value, checked once. Imports no compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from omnigraph.errors import UsageError
from omnigraph.option_field import names, option
from omnigraph.program import Dim
from omnigraph.quantization.options import Quantization

#: The types that key/value caches may be kept in, other than the model's own.
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
    """``batch=1:8,past=0:,sequence=64`` as a range for each dimension.

    Raises:
        UsageError: a part is no range.
    """
    ranges = {}
    for part in names(text):
        name, equals, bounds = part.partition("=")
        low, colon, high = bounds.partition(":")
        try:
            least = int(low)
            most = (int(high) if high else None) if colon else least
            if not equals:
                raise ValueError
        except ValueError:
            raise UsageError(
                f"--dynamic {part!r} is no range",
                expected="DIM=MIN:MAX, DIM=MIN: or DIM=SIZE",
                hint="for example --dynamic batch=1:8,sequence=1:1024",
            ) from None
        ranges[name.strip()] = Dim(least, most)
    return ranges


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export. ``omnigraph.export`` takes them as keywords too.

    Args:
        precision: one that each target can do, or "auto", which chooses layer by layer the fastest
            that keeps within a loss of accuracy; None is each target's own first.
        config: the size of "omninet": tiny, small or seed (the default).
        programs: which programs to compile; None is all.
        settings: fields of the model's configuration and options of the targets, as text.
        inputs: example inputs by name, where the model is a module or a file.
        dynamic: the range of each dimension; one size (``Dim(1, 1)``) makes it fixed.
        variants: "heads=12,8" adds, for each program, one with 12 heads an attention and one with
            8, which a Session may choose for a request (`omnigraph.head_variants`).
        importance: a JSON or ``.npz`` file with the importance of each head, for ``variants``.
        outputs: which outputs to compute; empty is all. A program that has none of them keeps its
            own.
        last: outputs of which only the position of the last token is computed, such as "logits".
        kv_cache: "int8" keeps keys and values in eight bits from call to call, with a scale for
            each head; None keeps them as the model has them.
        rtol: a root-mean-square tolerance in place of the one reasoned from the precision.
        require_fused: refuse a program with an attention that is not one node.
        verify_each: compare the numbers after every single pass, too.
        passes: edits of each target's pipeline, joined by commas: "-name" leaves a pass out, "name"
            or "name:option=value" adds it, or sets its options where it is already.
        quantization: how to quantize.
        calibration: DATA to quantize by, in place of that of ``quantization``.

    Raises:
        UsageError: an option has a value that cannot be.
    """

    precision: str | None = option(None, "default: the target's own first", metavar="P")
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
        None, "more programs, with N heads an attention", metavar="heads=N,N…"
    )
    importance: str | None = option(None, "which heads --variants keeps", metavar="FILE")
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
    rtol: float | None = option(None, "tolerance, relative rms", metavar="X", parse=float)
    require_fused: bool = option(False, "refuse an attention that is not one node", switch="on")
    verify_each: bool = option(False, "compare the numbers after every pass", switch="on")
    passes: str = option(
        "",
        "add passes (a name, or file.py:Class), or leave them out with -name",
        metavar="A,B:OPTION=VALUE,-C",
    )
    inputs: Mapping[str, Any] | None = None
    quantization: Quantization | None = None
    calibration: object | None = None

    def __post_init__(self) -> None:
        if self.kv_cache is not None and self.kv_cache not in CACHE_TYPES:
            raise UsageError(
                f"Key/value caches cannot be kept in {self.kv_cache!r}",
                expected=" or ".join(CACHE_TYPES),
                hint="leave --kv-cache out for the model's own type",
            )
        if self.rtol is not None and not self.rtol > 0:
            raise UsageError(
                "A tolerance is above zero",
                expected="such as 0.001",
                found=str(self.rtol),
                hint="leave --rtol out for the one that follows from the precision",
            )

    @classmethod
    def of(cls, options: ExportOptions | None, given: Mapping[str, Any]) -> ExportOptions:
        """Options with some of them set by keyword.

        Raises:
            UsageError: there is no such option.
        """
        known = [found.name for found in fields(cls)]
        for name in given:
            if name not in known:
                raise UsageError(
                    f"An export has no option {name!r}",
                    expected=", ".join(known),
                    hint="help(omnigraph.ExportOptions) says what each is for",
                )
        return replace(options or cls(), **given)

    @property
    def quantizing(self) -> Quantization:
        """How to quantize, with the calibration data that were given beside."""
        wanted = self.quantization or Quantization()
        if self.calibration is None:
            return wanted
        return replace(wanted, calibration=self.calibration)
