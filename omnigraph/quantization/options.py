"""How an export quantizes: the options, each checked once. Imports no compiler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from omnigraph.errors import UsageError
from omnigraph.option_field import names, option
from omnigraph.precision import AUTO, QUANTIZED

if TYPE_CHECKING:
    from omnigraph.passes.analysis.quantization.scheme import FourBits

#: Every number that was seen counts. The default: what is rare, such as the first token of a text,
#: may matter as much as the rest.
MIN_MAX = "min-max"
#: The ways to choose a range from what was seen.
METHODS = (MIN_MAX, "percentile", "entropy", "mse")
#: Terms that may share a scale in four bits: what the kernels of every target take.
GROUP_SIZES = (16, 32, 64, 128)
#: The loss that "auto" stays within, and the tokens that it times regions with.
AUTO_LOSS, AUTO_TOKENS = 0.005, 128


def checked_loss(text: str | float) -> float:
    """A bound on the loss: 0.005, or "0.5%".

    Raises:
        UsageError: it is no number of zero or more.
    """
    try:
        share = (
            float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
        )
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise UsageError(
            "The bound on the loss is no share",
            expected="0.5% or 0.005",
            found=str(text),
            hint="0.005 lets the perplexity grow by half a percent",
        )
    return share


@dataclass(frozen=True)
class Quantization:
    """How an export quantizes. What is left open, target and precision decide.

    Args:
        calibration: DATA (see `omnigraph.quantization.data`), or a file of statistics that ``save``
            wrote; None is random token ids.
        tokenizer: of DATA that is text: a file of the ``tokenizers`` library, or "bytes".
        samples: how many samples are looked at, at most.
        method: how ranges are chosen: "min-max", "percentile", "entropy" or "mse".
        group_size: of weights of four bits, how many terms share a scale: 16 to 128; None is the
            scheme's, which is 64.
        symmetric: weights of four bits have no zero points; None is as the scheme has it.
        keep: layers that stay in float: module paths, with ``*`` for any text.
        max_loss: how much worse the model may get, as a part of one. A search then chooses which
            layers are quantized (`omnigraph.quantization.budget`). "auto" has a bound of its own.
        evaluation: DATA that the loss is measured on; None is ``calibration``.
        speed_gate: how many tokens to time each region with. What is not faster than float on the
            target, on this machine, stays in float. None is no such test.
        save: a file to write the statistics to.
        choices: by module path, the precision of that layer; "float" is none.
        compensate: round weights so that the error of one is made good by others (GPTQ); None does
            it for four bits, where there is DATA.

    Raises:
        UsageError: an option has a value that cannot be.
    """

    calibration: object | None = option(
        None,
        "samples.npz, a folder of .npy or .npz, a text file, file.py:function, or what "
        "--save-calibration wrote; without it, random token ids",
        metavar="DATA",
    )
    tokenizer: str | None = option(None, "of text: a tokenizer.json, or bytes", metavar="FILE")
    samples: int = option(128, "to calibrate on, at most (128)", metavar="N", parse=int)
    method: str = option(
        MIN_MAX, f"of ranges: {MIN_MAX} (default), {', '.join(METHODS[1:])}", metavar="M"
    )
    group_size: int | None = option(
        None, "terms that share a scale in four bits (64)", metavar="N", parse=int
    )
    symmetric: bool | None = option(None, "four bits without zero points", switch="both")
    keep: tuple[str, ...] = option(
        (),
        "module paths to keep in float, with * for any text",
        metavar="LAYER[,…]",
        parse=names,
    )
    max_loss: float | None = option(
        None,
        "choose the precision of each layer so that the model is no more than this worse",
        metavar="X%",
        parse=checked_loss,
    )
    evaluation: object | None = option(
        None, "what --max-loss measures on; default: --calibration", metavar="DATA"
    )
    speed_gate: int | None = option(
        None,
        f"quantize only what is faster so on this machine, with so many tokens ({AUTO_TOKENS})",
        metavar="TOKENS",
        parse=int,
        bare=AUTO_TOKENS,
    )
    save: str | os.PathLike[str] | None = option(
        None, "to use again as DATA", metavar="FILE.npz", flag="--save-calibration"
    )
    choices: Mapping[str, str] = field(default_factory=dict)
    compensate: bool | None = None

    def __post_init__(self) -> None:
        if self.max_loss is not None:
            checked_loss(self.max_loss)
        self._check(
            self.method in METHODS,
            f"There is no way of calibrating called {self.method!r}",
            " or ".join(METHODS),
            self.method,
            "min-max takes all that was seen; the others clip",
        )
        self._check(
            self.speed_gate is None or self.speed_gate >= 1,
            "The speed gate needs tokens to time with",
            "1 or more",
            self.speed_gate,
            "as many as a call of the program usually has",
        )
        self._check(
            self.group_size is None or self.group_size in GROUP_SIZES,
            "Weights of four bits cannot share scales so",
            " or ".join(map(str, GROUP_SIZES)),
            self.group_size,
            "fewer terms a scale: less error, and more bytes",
        )
        self._check(
            self.samples >= 1,
            "Calibration needs samples",
            "1 or more",
            self.samples,
            "a hundred or so are enough",
        )

    @staticmethod
    def _check(good: bool, what: str, expected: str, found: object, hint: str) -> None:
        if not good:
            raise UsageError(what, expected=expected, found=str(found), hint=hint)

    @property
    def four_bits(self) -> FourBits:
        """How weights of four bits are stored."""
        from omnigraph.passes.analysis.quantization.scheme import FourBits

        return FourBits(self.group_size, self.symmetric)

    def check_used(self, precisions: Sequence[str]) -> None:
        """Refuse options of quantization where nothing is quantized.

        Raises:
            UsageError: none of the precisions of an export is one that quantizes.
        """
        self._check(
            self == Quantization() or any(p in QUANTIZED for p in precisions),
            "Options of quantization are given, and nothing is quantized",
            "--precision " + " or ".join(QUANTIZED),
            ", ".join(precisions),
            "leave them out, or choose one of these precisions",
        )

    def with_defaults(self, precision: str, *, runs_here: bool) -> Quantization:
        """With the bound and the gate that "auto" has where none are given.

        Args:
            precision: the one asked for.
            runs_here: whether the target's artifacts run on this machine, and so can be timed.
        """
        if precision != AUTO:
            return self
        gate = self.speed_gate
        if gate is None and runs_here:
            gate = AUTO_TOKENS
        most = AUTO_LOSS if self.max_loss is None else self.max_loss
        return replace(self, max_loss=most, speed_gate=gate)
