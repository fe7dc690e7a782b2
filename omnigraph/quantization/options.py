"""The options of quantization, checked once. Imports no compiler."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from omnigraph.errors import UsageError
from omnigraph.option_field import names, option, set_field
from omnigraph.precision import AUTO, QUANTIZED
from omnigraph.quantization.metrics.registry import METRICS, check_metric

if TYPE_CHECKING:
    from omnigraph.passes.analysis.quantization.scheme import FourBits

#: The range of all observed numbers. The default: rare values, such as those of the first token of
#: a text, may matter as much as the rest.
MIN_MAX = "min-max"
#: The mean over samples of the least and of the greatest number of each.
MEAN = "mean"
#: The methods that choose a range from the observed numbers, the default first.
METHODS = (MIN_MAX, MEAN, "percentile", "mse")
#: By preset, the error from which a layer is sensitive: it takes the finer scheme of its precision.
#: It is relative, of one product, and of each token alike. Rounding costs most products 1% to 2%,
#: and those with massive activations 8% to 13%.
PRESETS: Mapping[str, float] = {"balanced": 0.06, "fast": float("inf"), "accurate": 0.015}
#: How weights are rounded.
NEAREST, COMPENSATED, LEARNED = ROUNDINGS = ("nearest", "compensated", "learned")
#: How many samples are enough, and the terms with one scale, where nothing is given.
SAMPLES, GROUP_SIZE = 128, 64
#: Terms of a group with one scale, in four bits: the sizes that every target's kernels take.
GROUP_SIZES = (16, 32, 64, 128)
#: The largest loss of "auto", and the number of tokens with which it times regions.
AUTO_LOSS, AUTO_TOKENS = 0.005, 128


def checked_loss(text: str | float) -> float:
    """A bound on the loss: 0.005, or "0.5%".

    Raises:
        UsageError: it is not a number of zero or more.
    """
    try:
        loss = (
            float(text[:-1]) / 100 if isinstance(text, str) and text.endswith("%") else float(text)
        )
    except ValueError:
        loss = -1.0
    if not 0 <= loss < float("inf"):
        raise UsageError(
            "The bound on the loss is not a fraction",
            expected="0.5% or 0.005",
            found=str(text),
            hint="0.005 lets the perplexity grow by half a percent",
        )
    return loss


@dataclass(frozen=True)
class Quantization:
    """How an export quantizes. Target and precision decide what is left at None.

    Args:
        calibration: DATA (see `omnigraph.quantization.data`), or a file of statistics that ``save``
            wrote; None is random token ids.
        tokenizer: for DATA that is text: a file of the ``tokenizers`` library, or "bytes".
        samples: how many samples to calibrate on, at most.
        method: how ranges are chosen: one of ``METHODS``, of which the first is the default.
        preset: which layers take a finer scheme, since they would lose much with 8-bit activations:
            "balanced", "accurate" (more of them) or "fast" (none). It needs DATA.
        group_size: of four-bit weights, the terms with one scale: one of ``GROUP_SIZES``; None is
            the scheme's, which is ``GROUP_SIZE``.
        symmetric: four-bit weights have no zero points; None is as in the scheme.
        keep: layers that stay in float: module paths, with ``*`` for any text.
        max_loss: how much worse the model may get, as a fraction. A search then chooses which
            layers are quantized (`omnigraph.quantization.budget`). "auto" has a bound of its own.
        metric: what the loss is measured by: one of `omnigraph.quantization.metrics.registry`; None
            is what fits the program (`omnigraph.quantization.evaluation`).
        evaluation: DATA to measure the loss on; None holds every fourth sample of ``calibration``
            out for it, where there are 16 or more.
        speed_gate: the number of tokens with which each region is timed on the target, on this
            machine. Regions that are not faster than in float stay in float. None times nothing.
        save: a file to write the statistics to.
        choices: the precision of layers, by module path; "float" leaves one unquantized.
        rounding: of weights: to the "nearest"; "compensated", where others make up for the error of
            each (GPTQ); or "learned" by a few hundred steps for each block of the model
            (AutoRound), which takes minutes and needs torch and DATA. None is "compensated" where
            there is DATA, and "nearest" elsewhere.

    Raises:
        UsageError: an option has a value that cannot be.
    """

    calibration: object | None = option(
        None,
        "samples.npz, a folder of .npy or .npz, a text file, file.py:function, or a file of "
        "--save-calibration; default: random token ids",
        metavar="DATA",
    )
    tokenizer: str | None = option(
        None, "for text DATA: a tokenizer.json, or bytes", metavar="FILE"
    )
    samples: int = option(
        SAMPLES, f"samples to calibrate on, at most ({SAMPLES})", metavar="N", parse=int
    )
    method: str = option(
        METHODS[0],
        f"how to choose ranges: {METHODS[0]} (default), {', '.join(METHODS[1:])}",
        metavar="M",
    )
    preset: str = option(
        "balanced",
        f"how many layers to keep finer: {', '.join(PRESETS)}; default: balanced",
        metavar="P",
    )
    group_size: int | None = option(
        None, f"terms with one scale, in four bits ({GROUP_SIZE})", metavar="N", parse=int
    )
    symmetric: bool | None = option(None, "four bits without zero points", switch="both")
    keep: tuple[str, ...] = option(
        (),
        "module paths of layers to keep in float, with * for any text",
        metavar="LAYER[,…]",
        parse=names,
    )
    max_loss: float | None = option(
        None,
        "choose each layer's precision so that the model gets worse by this at most",
        metavar="X%",
        parse=checked_loss,
    )
    metric: str | None = option(
        None,
        f"what to measure the loss by: {', '.join(METRICS)}; default: what fits the program",
        metavar="NAME",
    )
    evaluation: object | None = option(
        None,
        "data to measure the loss on; default: a part of --calibration, held out of it",
        metavar="DATA",
    )
    speed_gate: int | None = option(
        None,
        f"quantize only where that is faster on this machine, with N tokens ({AUTO_TOKENS})",
        metavar="TOKENS",
        parse=int,
        bare=AUTO_TOKENS,
    )
    save: str | os.PathLike[str] | None = option(
        None,
        "write the statistics, to use as DATA again",
        metavar="FILE.npz",
        flag="--save-calibration",
    )
    rounding: str | None = option(
        None,
        f"how to round weights: {', '.join(ROUNDINGS)}; default: {COMPENSATED} with DATA, "
        f"else {NEAREST}",
        metavar="R",
    )
    choices: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_loss is not None:
            set_field(self, "max_loss", checked_loss(self.max_loss))
        if self.metric is not None:
            check_metric(self.metric)
        set_field(self, "keep", names(self.keep))
        self._check(
            self.method in METHODS,
            f"There is no calibration method {self.method!r}",
            " or ".join(METHODS),
            self.method,
            "min-max takes the whole range; the others clip",
        )
        self._check(
            self.preset in PRESETS,
            f"There is no preset {self.preset!r}",
            " or ".join(PRESETS),
            self.preset,
            "balanced keeps the layers finer that lose most",
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
            "Four-bit weights cannot have this group size",
            " or ".join(map(str, GROUP_SIZES)),
            self.group_size,
            "smaller groups: less error, and more bytes",
        )
        self._check(
            self.samples >= 1,
            "Calibration needs samples",
            "1 or more",
            self.samples,
            "a hundred or so are enough",
        )
        self._check_rounding()

    def _check_rounding(self) -> None:
        self._check(
            self.rounding in (None, *ROUNDINGS),
            f"Weights cannot be rounded by {self.rounding!r}",
            " or ".join(ROUNDINGS),
            self.rounding,
            "learned loses least, and takes longest",
        )
        self._check(
            self.rounding != LEARNED or self.calibration is not None,
            "Learned rounding needs inputs like real ones",
            "--calibration DATA",
            "none",
            "give it some of what the model is for, or leave --rounding out",
        )

    @staticmethod
    def _check(good: bool, what: str, expected: str, found: object, hint: str) -> None:
        if not good:
            raise UsageError(what, expected=expected, found=str(found), hint=hint)

    @property
    def four_bits(self) -> FourBits:
        """How four-bit weights are stored."""
        from omnigraph.passes.analysis.quantization.scheme import FourBits

        return FourBits(self.group_size, self.symmetric)

    def check_used(self, precisions: Sequence[str], *, judges: bool) -> None:
        """Refuse options of quantization where nothing is quantized, or nothing is measured.

        Args:
            precisions: of each target.
            judges: whether a loss is measured for one of them.

        Raises:
            UsageError: none of the precisions quantizes, or there is a metric of no loss.
        """
        self._check(
            self == Quantization() or any(p in QUANTIZED for p in precisions),
            "Options of quantization are given, but nothing is quantized",
            "--precision " + " or ".join(QUANTIZED),
            ", ".join(precisions),
            "leave them out, or choose one of these precisions",
        )
        self._check(
            self.metric is None or judges,
            "A metric is given, but no loss is measured",
            "--max-loss X%",
            f"--metric {self.metric}",
            f"give --max-loss, or --precision {AUTO}, which has a bound of its own",
        )

    def with_defaults(self, precision: str, *, runs_here: bool) -> Quantization:
        """For "auto", with its own bound and gate where none are given.

        Args:
            precision: that the user asked for.
            runs_here: whether the target's artifacts run on this machine, to be timed.
        """
        if precision != AUTO:
            return self
        gate = self.speed_gate
        if gate is None and runs_here:
            gate = AUTO_TOKENS
        max_loss = AUTO_LOSS if self.max_loss is None else self.max_loss
        return replace(self, max_loss=max_loss, speed_gate=gate)
