"""How an export quantizes: the options, each checked once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from omnigraph.errors import UsageError
from omnigraph.lowering import Target
from omnigraph.passes.analysis.quantization.scheme import QUANTIZED, FourBits
from omnigraph.quantization.budget import AUTO, AUTO_LOSS, AUTO_TOKENS
from omnigraph.quantization.calibration import METHODS

#: The default: what is rare, such as the first token of a text, may matter as much as the rest.
_METHOD = "min-max"
#: Terms that may share a scale in four bits: what the kernels of every target take.
GROUP_SIZES = (16, 32, 64, 128)


@dataclass(frozen=True)
class Quantization:
    """How an export quantizes; what is left open, target and precision decide.

    Args:
        calibration: DATA (see `omnigraph.quantization.data`), or a file of statistics that ``save``
            wrote; None is random token ids.
        tokenizer: of DATA that is text: a file of the ``tokenizers`` library, or "bytes".
        samples: how many samples are looked at, at most.
        method: how ranges are chosen: "min-max", "percentile", "entropy" or "mse".
        keep: layers that stay in float: module paths, with ``*`` for any text.
        choices: by module path, the precision of that layer; "float" is none.
        compensate: round weights so that the error of one is made good by others (GPTQ); None does
            it for four bits, where there is DATA.
        group_size: of weights of four bits, how many terms share a scale: 16 to 128; None is what
            the target's scheme has, which is 64.
        symmetric: of weights of four bits, without zero points; None is what the scheme has.
        save: a file to write the statistics to.
        max_loss: how much worse the model may get, as a part of one; which layers are quantized is
            found by it (`omnigraph.quantization.budget`). "auto" has a bound of its own.
        evaluation: DATA that the loss is measured on; None is ``calibration``.
        speed_gate: how many tokens to time each region with; what is not faster than float on the
            target, on this machine, stays in float. None is no such test.
    """

    calibration: object | None = None
    tokenizer: str | None = None
    samples: int = 128
    method: str = _METHOD
    keep: tuple[str, ...] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    compensate: bool | None = None
    group_size: int | None = None
    symmetric: bool | None = None
    save: str | os.PathLike[str] | None = None
    max_loss: float | None = None
    evaluation: object | None = None
    speed_gate: int | None = None

    def check(self, precisions: Sequence[str]) -> None:
        """Refuse options that mean nothing for the precisions of an export.

        Raises:
            UsageError: naming the option.
        """
        if self.method not in METHODS:
            raise UsageError(
                f"There is no way of calibrating called {self.method!r}",
                expected=" or ".join(METHODS),
                hint="min-max takes all that was seen; the others clip",
            )
        if self.max_loss is not None and not self.max_loss >= 0:
            raise UsageError(
                "The bound on the loss is no share",
                expected="0 or more, such as 0.005",
                found=str(self.max_loss),
                hint="0.005 lets the perplexity grow by half a percent",
            )
        if self.speed_gate is not None and self.speed_gate < 1:
            raise UsageError(
                "The speed gate needs tokens to time with",
                expected="1 or more",
                found=str(self.speed_gate),
                hint="as many as a call of the program usually has",
            )
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            raise UsageError(
                "Weights of four bits cannot share scales so",
                expected=" or ".join(map(str, GROUP_SIZES)),
                found=str(self.group_size),
                hint="fewer terms a scale: less error, and more bytes",
            )
        if self.samples < 1:
            raise UsageError(
                "Calibration needs samples",
                expected="1 or more",
                found=str(self.samples),
                hint="a hundred or so are enough",
            )
        if self != Quantization() and not any(p in QUANTIZED for p in precisions):
            raise UsageError(
                "Options of quantization are given, and nothing is quantized",
                expected="--precision " + " or ".join(QUANTIZED),
                found=", ".join(precisions),
                hint="leave them out, or choose one of these precisions",
            )

    @property
    def four_bits(self) -> FourBits:
        """How weights of four bits are stored."""
        return FourBits(self.group_size, self.symmetric)

    def with_defaults(self, asked: str, target: Target) -> Quantization:
        """With the bound and the gate that "auto" has where none are given."""
        if asked != AUTO:
            return self
        most = AUTO_LOSS if self.max_loss is None else self.max_loss
        gate = self.speed_gate
        if gate is None and target.unrunnable() is None:
            gate = AUTO_TOKENS
        return replace(self, max_loss=most, speed_gate=gate)
