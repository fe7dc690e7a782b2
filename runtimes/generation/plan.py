"""A request as the loop takes it: everything checked and made before the first token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from omnigraph.errors import InputError, RunError, UsageError, suggest
from omnigraph.runtimes.generation.config import DEFAULT_NEW_TOKENS, REFUSED, GenerationConfig
from omnigraph.runtimes.generation.processors import Processor, ValidValues, processors
from omnigraph.runtimes.generation.prompt import Prompt
from omnigraph.runtimes.generation.result import Token
from omnigraph.runtimes.generation.stopping import Criterion, Stopping, Tokenizer

_LENGTHS = ("max_length", "max_new_tokens")


@dataclass(frozen=True)
class Hooks:
    """What a caller gives besides the parameters of a `GenerationConfig`.

    Args:
        logits_processor: of the caller; one callable or several.
        stopping_criteria: of the caller; one callable or several.
        tokenizer: reads ids, for ``stop_strings``.
        on_token: called with each `Token`.
        cancel: ends the generation at the next token: an event, or a callable.
        log_probs: whether log-probabilities are wanted.
        seed: of sampling; None is another one each time.
        program: the program with a past; None finds it.
        variant: of ``Session.run``.
        decoder_input_ids: the prompts of a decoder with an encoder, [B, P] or [P].
    """

    logits_processor: Processor | Sequence[Processor] = ()
    stopping_criteria: Criterion | Sequence[Criterion] = ()
    tokenizer: Tokenizer | None = None
    on_token: Callable[[Token], Any] | None = None
    cancel: Any = None
    log_probs: bool = False
    seed: int | None = None
    program: str | None = None
    variant: str | None = None
    decoder_input_ids: Any = None

    def cancelled(self) -> bool:
        """Whether the caller wants no more tokens."""
        if self.cancel is None:
            return False
        return bool(self.cancel.is_set() if hasattr(self.cancel, "is_set") else self.cancel())


def split_options(options: Mapping[str, Any]) -> tuple[Hooks, dict[str, Any]]:
    """The hooks, and the parameters, among the keywords of a call.

    Raises:
        UsageError: a keyword is neither.
    """
    hooks = {field.name for field in fields(Hooks)}
    parameters = {field.name for field in fields(GenerationConfig)} - {"ignored"}
    for name in options:  # the config says why it refuses some
        if name not in hooks | parameters | REFUSED.keys():
            raise UsageError(
                f"generate has no parameter {name!r}",
                expected="a field of generation_config.json, or " + ", ".join(sorted(hooks)),
                found=name,
                hint=suggest(name, hooks | parameters, "docs/generation.md lists them"),
            )
    chosen = {name: value for name, value in options.items() if name in hooks}
    rest = {name: value for name, value in options.items() if name not in hooks}
    return Hooks(**chosen), rest


@dataclass(frozen=True, eq=False)
class Plan:
    """Everything that the loop needs besides a decoder.

    Args:
        longest: positions at most, prompt included.
        processors: what changes the scores, in order.
        stopping: what ends a row.
        generators: of random numbers, one for each row.
    """

    config: GenerationConfig
    prompt: Prompt
    longest: int
    processors: Sequence[Processor]
    stopping: Stopping
    generators: Sequence[np.random.Generator]
    hooks: Hooks

    def processed(self, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The scores [R, V] float32 after all processors.

        Raises:
            RunError: the model gave NaN.
        """
        keeps_nan = not any(isinstance(each, ValidValues) for each in self.processors)
        if keeps_nan and np.isnan(scores).any():
            raise RunError(
                f"The model's scores of token {ids.shape[1]} are no numbers",
                expected="scores without NaN",
                found=f"{int(np.isnan(scores).sum())} NaN",
                hint="`omnigraph verify` compares the artifact with its model here; "
                "remove_invalid_values=True goes on with 0 in their place",
            )
        for processor in self.processors:
            scores = processor(ids, scores)
        return scores


def make_plan(
    config: GenerationConfig,
    given: set[str],
    prompt: Prompt,
    capacity: int | None,
    hooks: Hooks,
    source: np.ndarray | None = None,
) -> Plan:
    """The plan of a request.

    Args:
        given: the parameters that the caller named.
        capacity: of the decoder: positions at most.
        source: what an encoder read, ids [B, S] or features; None where there is no encoder.

    Raises:
        UsageError: parameters that cannot be together, or that need what is missing.
        InputError: the prompt, or the length asked for, is more than the artifact takes.
    """
    longest = longest_of(config, given, prompt.ids.shape[1], capacity)
    rows = len(prompt.ids) * max(config.num_beams, config.num_return_sequences)
    if hooks.log_probs and hooks.log_probs is not True:
        raise UsageError(
            "log_probs says whether log-probabilities are wanted",
            expected="True or False",
            found=repr(hooks.log_probs)[:80],
            hint="those of the tokens that were chosen are given",
        )
    shown = np.repeat(prompt.shown, rows // len(prompt.ids), axis=0)
    own = _several(hooks.logits_processor)
    return Plan(
        config,
        prompt,
        longest,
        processors(config, prompt.ids if source is None else source, shown, longest, own),
        Stopping(config, longest, _several(hooks.stopping_criteria), hooks.tokenizer),
        _generators(hooks.seed, rows),
        hooks,
    )


def longest_of(
    config: GenerationConfig, given: set[str], prompt_length: int, capacity: int | None
) -> int:
    """How many positions a row may have, prompt included.

    The last token is never read, so that it needs no room among keys and values. A length that the
    caller did not name ends where the room does.

    Raises:
        UsageError: there is no room for a new token in ``max_length``.
        InputError: the prompt, or the length asked for, is more than the artifact takes.
    """
    if config.max_new_tokens is not None:
        longest = prompt_length + config.max_new_tokens
    elif config.max_length is not None:
        longest = config.max_length
    else:
        longest = prompt_length + DEFAULT_NEW_TOKENS
        if capacity is not None:  # as transformers does with a model's max_position_embeddings
            longest = max(prompt_length + 1, min(longest, capacity))
    if longest <= prompt_length:
        raise UsageError(
            "There is no room for a new token",
            expected=f"max_length above {prompt_length}, the length of the prompt",
            found=str(longest),
            hint="max_new_tokens=… counts new tokens only",
        )
    if capacity is None or longest <= capacity + 1:
        return longest
    if prompt_length > capacity or given & {*_LENGTHS}:
        raise InputError(
            "The artifact has no room for so many tokens",
            expected=f"at most {capacity + 1}, prompt and new ones together",
            found=f"{prompt_length} and {longest - prompt_length}",
            hint="ask for fewer; an export with --dynamic past=0:N has room for more, as far as "
            "the model has positions",
        )
    return capacity + 1


def _several(given: Any) -> Sequence[Any]:
    return (given,) if callable(given) else tuple(given)


def _generators(seed: int | None, rows: int) -> list[np.random.Generator]:
    """One for each row, so that a row draws the same in a batch of any size."""
    if seed is None:
        return [np.random.default_rng() for _ in range(rows)]
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(
            "A seed is a whole number",
            expected="seed of at least 0, or None",
            found=repr(seed)[:80],
            hint="the same seed gives the same tokens on the same machine",
        )
    return [np.random.default_rng([int(seed), row]) for row in range(rows)]
