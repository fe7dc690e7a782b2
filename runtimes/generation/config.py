"""`GenerationConfig`: how tokens are chosen, by the names of a generation_config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnigraph.errors import UnsupportedError, UsageError, suggest

#: New tokens where no length is given.
DEFAULT_NEW_TOKENS = 20
#: Fields of transformers that change the result and that this loop does not have, with the values
#: at which they change nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "guidance_scale": (None, 1, 1.0),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0, 0.0),
    "constraints": (None,),
    "force_words_ids": (None,),
}


def _option(check: Callable[[Any], bool], expected: str, default: Any = None) -> Any:
    """A field that holds its default, or what a check takes."""
    return field(default=default, metadata={"check": check, "expected": expected})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _count(least: int, default: int | None = None) -> Any:
    return _option(
        lambda value: _whole(value) and value >= least,
        f"a whole number of at least {least}",
        default,
    )


def _real(value: Any) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)


def _number(default: float | None = None) -> Any:
    return _option(_real, "a number", default)


def _above_zero(default: float | None = None) -> Any:
    return _option(lambda value: _real(value) and value > 0, "a number above 0", default)


def _share(default: float | None = None, *, above: float = -1.0, below: float = 2.0) -> Any:
    """A number from 0 to 1, whose ends a bound may leave out."""
    ends = (" above 0" if above == 0 else "") + (" below 1" if below == 1 else "")
    return _option(
        lambda value: _real(value) and 0 <= value <= 1 and above < value < below,
        f"a number from 0 to 1{ends}",
        default,
    )


def _flag() -> Any:
    return _option(lambda value: isinstance(value, bool), "true or false", False)


def _is_id(value: Any) -> bool:
    return _whole(value) and value >= 0


def _is_ids(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_id(each) for each in value)


def _id() -> Any:
    return _option(_is_id, "a token id")


def _ids() -> Any:
    return _option(_is_ids, "token ids")


def _is_words(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_ids(each) and each for each in value)


def _is_biases(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_ids(pair[0])
        and bool(pair[0])
        and _real(pair[1])
        for pair in value
    )


def _is_decay(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and _whole(value[0]) and _real(value[1])


def _is_strings(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(each, str) and each for each in value)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How tokens are chosen and when generation stops.

    Names, meanings and defaults are those of transformers 5 (``GenerationConfig``), but for
    ``presence_penalty`` and ``frequency_penalty``, which are those of the API of OpenAI: they are
    subtracted from the score of a token that was generated, the second once for each time. Lists
    may be given wherever a field holds tuples, and one id where it holds several.

    Args:
        max_length: tokens of the prompt and new ones together; None is 20 new ones.
        max_new_tokens: goes before ``max_length``.
        early_stopping: of beam search: True stops at ``num_beams`` finished ones, False where a
            better one is unlikely, "never" where there can be none.
        max_time: seconds.
        ignored: names of fields that were given to `from_dict` and mean nothing here.

    Raises:
        UsageError: a field has a value that it cannot have.
    """

    max_length: int | None = _count(1)
    max_new_tokens: int | None = _count(1)
    min_length: int = _count(0, 0)
    min_new_tokens: int | None = _count(0)
    early_stopping: bool | str = _option(
        lambda value: isinstance(value, bool) or value == "never", "true, false or 'never'", False
    )
    max_time: float | None = _above_zero()
    stop_strings: tuple[str, ...] | None = _option(_is_strings, "texts that are not empty")

    do_sample: bool = _flag()
    num_beams: int = _count(1, 1)
    num_return_sequences: int = _count(1, 1)
    prefill_chunk_size: int | None = _count(1)

    temperature: float = _above_zero(1.0)
    top_k: int = _count(0, 50)
    top_p: float = _share(1.0)
    min_p: float | None = _share()
    top_h: float | None = _share(above=0)
    typical_p: float = _share(1.0, above=0)
    epsilon_cutoff: float = _share(0.0, below=1)
    eta_cutoff: float = _share(0.0, below=1)

    repetition_penalty: float = _above_zero(1.0)
    encoder_repetition_penalty: float = _above_zero(1.0)
    presence_penalty: float = _number(0.0)
    frequency_penalty: float = _number(0.0)
    length_penalty: float = _number(1.0)
    exponential_decay_length_penalty: tuple[int, float] | None = _option(
        _is_decay, "a start and a factor"
    )

    no_repeat_ngram_size: int = _count(0, 0)
    encoder_no_repeat_ngram_size: int = _count(0, 0)
    bad_words_ids: tuple[tuple[int, ...], ...] | None = _option(_is_words, "lists of token ids")
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] | None = _option(
        _is_biases, "pairs of token ids and a number"
    )
    forced_bos_token_id: int | None = _id()
    forced_eos_token_id: tuple[int, ...] | None = _ids()
    suppress_tokens: tuple[int, ...] | None = _ids()
    begin_suppress_tokens: tuple[int, ...] | None = _ids()
    remove_invalid_values: bool = _flag()
    renormalize_logits: bool = _flag()

    pad_token_id: int | None = _id()
    bos_token_id: int | None = _id()
    decoder_start_token_id: int | None = _id()
    eos_token_id: tuple[int, ...] | None = _ids()

    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            if "check" not in each.metadata:
                continue
            value = _normal(each.name, getattr(self, each.name), each.default)
            object.__setattr__(self, each.name, value)
            if value != each.default and not each.metadata["check"](value):
                raise UsageError(
                    f"{each.name} of a generation has a value that it cannot have",
                    expected=each.metadata["expected"],
                    found=repr(value)[:80],
                    hint="for greedy decoding, leave temperature out: do_sample=False is greedy"
                    if each.name == "temperature" and value == 0
                    else "docs/generation.md lists the parameters",
                )
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise UsageError(
                f"{self.num_return_sequences} sequences cannot be returned for one prompt",
                expected="one by greedy decoding, and as many as num_beams by beam search",
                found=f"num_beams={self.num_beams}, do_sample=False",
                hint="sample with do_sample=True, or raise num_beams",
            )
        if 1 < self.num_beams < self.num_return_sequences:
            raise UsageError(
                "A beam search returns no more sequences than it has beams",
                expected=f"num_return_sequences of at most {self.num_beams}",
                found=str(self.num_return_sequences),
                hint="raise num_beams",
            )

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> GenerationConfig:
        """A config of the fields of a generation_config.json; a null is the default.

        Fields that it does not know change nothing, and ``ignored`` names them.

        Raises:
            UsageError: a field has a value that it cannot have.
            UnsupportedError: a field asks for what would change the result and is not made here.
        """
        return cls().updated(fields)

    def updated(self, fields: Mapping[str, Any], *, strict: bool = False) -> GenerationConfig:
        """The same config with some fields replaced.

        Args:
            fields: by name; a None is the default of the field.
            strict: refuse names that there are not, rather than note them in ``ignored``.

        Raises:
            UsageError: a field has a value that it cannot have; or, with ``strict``, is unknown.
            UnsupportedError: a field asks for what would change the result and is not made here.
        """
        known = {each.name: each.default for each in dataclasses.fields(self)}
        del known["ignored"]
        for name, harmless in REFUSED.items():
            if name in fields and fields[name] not in harmless:
                raise UnsupportedError(
                    f"Generation with {name} is not made here, and would give other tokens without",
                    expected=" or ".join(map(repr, harmless)),
                    found=repr(fields[name])[:80],
                    hint="leave it out, or pass logits_processor= a callable that does it",
                )
        others = [name for name in fields if name not in known and name not in REFUSED]
        if strict and others:
            raise UsageError(
                f"A generation has no parameter {others[0]!r}",
                expected="a field of generation_config.json",
                found=others[0],
                hint=suggest(others[0], known, "docs/generation.md lists the parameters"),
            )
        given: dict[str, Any] = {
            name: known[name] if value is None else value
            for name, value in fields.items()
            if name in known
        }
        noted = dict.fromkeys((*self.ignored, *others))
        return dataclasses.replace(self, **given, ignored=tuple(noted))

    @property
    def pad(self) -> int:
        """The id that fills rows which are finished."""
        if self.pad_token_id is not None:
            return self.pad_token_id
        return self.eos_token_id[0] if self.eos_token_id else 0

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, JSON-ready."""
        return {
            each.name: _listed(getattr(self, each.name))
            for each in dataclasses.fields(self)
            if each.name != "ignored" and getattr(self, each.name) != each.default
        }


#: Fields of several ids or texts, where one alone may be given.
_SEVERAL = {"eos_token_id", "forced_eos_token_id", "stop_strings"}


def _normal(name: str, value: Any, default: Any) -> Any:
    """A value with tuples for lists, Python's numbers for numpy's, and one id as several."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if name == "sequence_bias" and isinstance(value, Mapping):
        value = list(value.items())
    if name in _SEVERAL and (isinstance(value, str) or _whole(value)):
        value = (value,)
    value = _tupled(value)
    # Older folders say by a negative id that there is none.
    if name == "pad_token_id" and _whole(value) and value < 0:
        return None
    if name == "eos_token_id" and isinstance(value, tuple):
        value = tuple(each for each in value if not (_whole(each) and each < 0))
    if isinstance(default, bool) and value in (0, 1) and not isinstance(value, bool):
        return bool(value)
    return value if value != () else default


def _tupled(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_tupled(each) for each in value)
    return value


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value
